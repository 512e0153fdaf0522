"""Finding, listing, comparing, copying and deleting checkpoints: the command line's work.

In comes a target (a directory, a store, a job or a `bt://` URL); out come plain objects that the
command line prints. It must never run code from a checkpoint's files, print anything, or delete
what is protected. Start reading at `find_target`, which opens a job's checkpoints, and at
`job_checkpoints`, which defines them.
"""
