"""What checkpoints are, beyond their numbers: their kind, and the model that they adapt."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.manage.verified_reads import read_file
from bt_lightning.store.transfer.parallel_reads import in_parallel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bt_lightning.manage.job_checkpoints import CheckpointItem, JobCheckpoints
    from bt_lightning.manifest import FileEntry

_ADAPTER, _CONFIG = "adapter_config.json", "config.json"
_LARGEST = 1_000_000
"""Bytes of a configuration; a larger one is not read for a list."""
_READERS = 16
_WHISPER = "whisper"


@dataclass(frozen=True, slots=True)
class CheckpointKind:
    """What one checkpoint is."""

    kind: str
    """`lora` if it holds an adapter, `whisper` if the model is one, else `full`, as of Baseten."""
    base_model: str | None
    """The model that was trained on, as the adapter or the manifest's origin names it."""
    adapter: dict[str, Any] | None
    """The configuration of its adapter; None if it has none that can be read."""


def checkpoint_kind(pairs: Sequence[tuple[JobCheckpoints, CheckpointItem]]) -> list[CheckpointKind]:
    """What each checkpoint is, in their order.

    Small files are read for it, several at a time, and those of one digest once: most checkpoints
    of a job have the same. What is damaged or gone says nothing here: `verify` tells.

    Raises:
        StoreError: a store refused.
    """
    entries = [_telling(item) for _, item in pairs]
    wanted = {
        entry.xxh3_128: (shelf, item, entry)
        for (shelf, item), entry in zip(pairs, entries, strict=True)
        if entry is not None and entry.size <= _LARGEST
    }
    read = in_parallel(lambda one: _read(*one), list(wanted.values()), _READERS)
    known = dict(zip(wanted, read, strict=True))
    return [
        _about(item, entry, known.get(entry.xxh3_128) if entry else None)
        for (_, item), entry in zip(pairs, entries, strict=True)
    ]


def _about(
    item: CheckpointItem, entry: FileEntry | None, said: dict[str, Any] | None
) -> CheckpointKind:
    named = item.manifest.origin.get("base_model")
    if entry is None or entry.path == _CONFIG:
        whisper = (said or {}).get("model_type") == _WHISPER
        return CheckpointKind(_WHISPER if whisper else "full", _text(named), None)
    return CheckpointKind("lora", _text((said or {}).get("base_model_name_or_path", named)), said)


def _telling(item: CheckpointItem) -> FileEntry | None:
    """The file that tells what it is: of an adapter, wherever that lies, else of the model."""
    files = item.manifest.files
    adapter = next((e for e in files if e.path.rpartition("/")[2] == _ADAPTER), None)
    return adapter or item.manifest.entry(_CONFIG)


def _read(shelf: JobCheckpoints, item: CheckpointItem, entry: FileEntry) -> dict[str, Any] | None:
    try:
        said = json.loads(read_file(shelf, item, entry))
    except (CheckpointCorruptError, CheckpointNotFoundError, ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def _text(named: object) -> str | None:
    return named if isinstance(named, str) else None
