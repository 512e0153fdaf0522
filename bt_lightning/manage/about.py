"""What a checkpoint is, beyond its numbers: its kind, and the model that it adapts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.manage.reading import read_file

if TYPE_CHECKING:
    from bt_lightning.manage.shelf import Item, Shelf

_ADAPTER = "adapter_config.json"
_LARGEST = 1_000_000
"""Bytes of an adapter's configuration; a larger one is not read for a list."""


def checkpoint_type(item: Item) -> str:
    """`lora` if it holds an adapter, else `full`: Baseten's words."""
    return "full" if _adapter_path(item) is None else "lora"


def adapter_config(shelf: Shelf, item: Item) -> dict[str, Any] | None:
    """The configuration of its adapter; None if it has none that can be read. One small read."""
    path = _adapter_path(item)
    entry = None if path is None else item.manifest.entry(path)
    if entry is None or entry.size > _LARGEST:
        return None
    try:
        said = json.loads(read_file(shelf, item, entry))
    except (CheckpointCorruptError, CheckpointNotFoundError, ValueError, RecursionError):
        return None  # `verify` tells; a list goes on
    return said if isinstance(said, dict) else None


def base_model(item: Item, config: dict[str, Any] | None) -> str | None:
    """The model that was trained on, as the adapter or the manifest's origin names it."""
    named = (config or {}).get("base_model_name_or_path", item.manifest.origin.get("base_model"))
    return named if isinstance(named, str) else None


def _adapter_path(item: Item) -> str | None:
    paths = (entry.path for entry in item.manifest.files)
    return next((path for path in paths if path.rpartition("/")[2] == _ADAPTER), None)
