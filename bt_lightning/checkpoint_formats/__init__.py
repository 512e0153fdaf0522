"""The layouts of checkpoints that other programs write: one table of formats, pure.

In: names, sizes and times of files, and a bounded reader of them. Out: what a folder or a file is:
a whole checkpoint (with its step, metrics and base model), one that lacks something, or none. It
must never call a checkpoint whole of which a part is missing, run code of a file, or read without a
bound.

Start at `table`.
"""
