"""Access to the key-value store of the process group, and unique keys for exchanges of ranks."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_KEYS: Iterator[str] = map("bt_lightning/{}".format, itertools.count())
"""Prefixes of keys, in the same order on each rank, so that no key is used twice."""


def begin_keys(name: str) -> None:
    """Restart the keys under a name that all ranks know: a rank may have skipped an exchange."""
    global _KEYS  # noqa: PLW0603 - a process is one rank
    _KEYS = map(f"bt_lightning/{name}/{{}}".format, itertools.count())


def next_key(label: str) -> str:
    """A new key, the same on each rank if all call this in the same order."""
    return f"{next(_KEYS)}/{label}"


def process_group_store() -> Any:
    """The key-value store of the default process group."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()
