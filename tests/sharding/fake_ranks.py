"""This process as any rank of any world, by torch's fake process group."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def rank_of(world_size: int, rank: int) -> Iterator[None]:
    """This process is a rank of a world whose other ranks are not there."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()
