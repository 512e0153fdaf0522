"""The background process that commits, publishes and deletes, and the handle that controls it.

In come messages of the training process (`bt_lightning.worker_messages`) and images of checkpoints
in shared arenas; out go committed checkpoints on the disk and in the store, and one event for each.
The worker imports neither torch nor lightning, deletes nothing whose newer successor is not
committed, and never makes the training thread wait. Start reading at `worker_process` (the process)
and `worker_handle` (the training process's side).
"""
