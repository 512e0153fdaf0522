"""What is in a store: projects, jobs and checkpoints, their names, records and protection.

What comes in is a store and a name, a prefix or a `bt://` path; what goes out is manifests, lists
and verified bytes. This room never takes a folder without a manifest for a checkpoint, and never
takes a store that fails for an empty one. It writes small records only.

Start with `listing`, one job's checkpoints, or with `projects`, everything in a store.
`bt_url_tree` and `bt_filesystem` build the `bt://` filesystem on them.
"""
