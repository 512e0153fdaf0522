"""Takes a snapshot of a training state and hands its bytes to the worker.

A checkpoint dictionary, or the files of a framework's folder, comes in; the files of a checkpoint
go out, in shared host memory (an arena) that the worker process writes from. Nothing here may touch
the disk or the network, block the training thread for longer than a copy in memory, or keep a
snapshot that mixes two steps.
Start reading at `saver` (the life of one save), then `state_files` (the layout of the files) and
`capture` (the copies).
"""
