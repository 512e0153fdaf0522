"""Move checkpoints and files between local disk, memory and stores, every byte verified.

What comes in is a committed checkpoint, a file of the job or a range; what goes out is a published
checkpoint, a committed directory, or verified bytes. This room never commits a manifest before all
files that it names are in the store, never deletes a file before the manifest that names it, and
never hands out bytes that differ from their digests.

Start with `publish` and `unpublish`, the way into a store and out of it, or with
`checkpoint_reader`, what `fetch_to_disk` and every restore read from.
"""
