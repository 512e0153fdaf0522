"""The key-value store of the process group, and the keys that ranks meet at in it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_KEYS: Iterator[str] = map("bt_lightning/{}".format, itertools.count())
"""Counts the meetings of this process's ranks, the same on each: keys of the store never repeat."""


def begin_keys(name: str) -> None:
    """Count anew, under a name that all ranks have: one of them may have missed a meeting."""
    global _KEYS  # noqa: PLW0603 - a process is one rank
    _KEYS = map(f"bt_lightning/{name}/{{}}".format, itertools.count())


def next_key(label: str) -> str:
    """A key that no two meetings of this process's ranks share, the same on each of them."""
    return f"{next(_KEYS)}/{label}"


def process_group_store() -> Any:
    """The key-value store that the default process group was made with."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()
