"""Implementations of `Store` for local folders, Azure, Google and any other fsspec filesystem.

What comes in is keys, bytes and sources; what goes out is objects, each whole and durable. A
backend never shows half an object under its key, never follows a link out of its root, and never
asks as another user than the one that fsspec's client would be.

Start with `fsspec_store`, the general case. `local_folder` is a folder, `azure` and `gcs` send and
read bytes through `obstore_client`. S3 has a room of its own, `store.s3`.
"""
