"""The size of the blocks by which the files of a sharded checkpoint are verified.

A rank that loads on another mesh than the one that saved reads a part of each box, by whole blocks:
some one block more than it needs for each part. Small blocks make that little; each has a digest of
16 bytes in the manifest, which every look at the checkpoint reads.
"""

from __future__ import annotations

from typing import Final

from bt_lightning.file_entries import BLOCK_BYTES

LEAST_BYTES: Final = 16 * 1024
"""Smaller ones take longer to hash: each costs a microsecond beside its bytes."""
MOST_BLOCKS: Final = 65_536
"""Their digests are 1.4 MB of a manifest."""


def block_bytes_of(total_bytes: int) -> int:
    """The size of blocks for tensors of `total_bytes`, those of all ranks; each rank computes it.

    The smallest power of two from `LEAST_BYTES` to `BLOCK_BYTES` with at most `MOST_BLOCKS` blocks,
    or else `BLOCK_BYTES`: from 128 GiB of tensors on.
    """
    size = LEAST_BYTES
    while size < BLOCK_BYTES and size * MOST_BLOCKS < total_bytes:
        size *= 2
    return size
