"""Tells whether several processes read the same files, so that one should fill the page cache."""

from __future__ import annotations

import torch.distributed as dist


def others_read_too() -> bool:
    """Whether this process is one of several ranks, of which each loads a whole checkpoint."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
