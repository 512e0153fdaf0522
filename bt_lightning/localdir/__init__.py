"""Durable directories and small files on a local disk. No torch, no network.

What comes in is a checkpoint directory and bytes; what goes out is committed checkpoints, and what
is on the disk: checkpoints, job files, locks, records, events. This room never shows a checkpoint
that is not whole and durable, never deletes what a living process owns or reads, and never follows
a link or waits at a pipe that somebody put there.

Start with `commit`, which writes a checkpoint, and `atomic_directory`, the rename and the sweep
below it; `local_checkpoints` finds and verifies what is committed.
"""
