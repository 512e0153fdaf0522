"""Loads a checkpoint back into the dictionary that was saved, and finds the one to resume from.

A `CheckpointReader` (a directory or a store) comes in; a dictionary of tensors and plain values, on
the CPU or on a device, goes out. Nothing here may use a byte that was not verified against the
manifest, or run code from a file unless the caller passed `weights_only=False`. Start reading at
`load_checkpoint`; `find_checkpoint` chooses what a run resumes from.
"""
