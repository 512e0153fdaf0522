"""The store: where committed checkpoints are published to, and read back from.

What comes in is a committed checkpoint, or a file of the job, and a store URL; what goes out is
objects in a bucket or a folder, and verified bytes back. This room never deletes a checkpoint
without being told to, never shows one whose files are not all there, and lets no secret into a
message; fsspec, botocore and obstore are imported here only.

Start with `interface`, the `Store` protocol. `backends` and `s3` implement it, `transfer` moves
checkpoints over it, `catalog` answers what is in it, `lease` lets one process at a time write.
"""
