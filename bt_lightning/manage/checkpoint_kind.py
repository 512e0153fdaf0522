"""The kind of each checkpoint (full model, LoRA adapter, Whisper), and its base model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.late_files import MODEL_CONFIG, searched
from bt_lightning.manage.verified_reads import read_file
from bt_lightning.path_layout import ADAPTER_CONFIG
from bt_lightning.store.transfer.parallel_reads import in_parallel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints

_MAX_CONFIG_BYTES = 1_000_000
"""A larger configuration file is not read."""
_READERS = 16
_WHISPER = "whisper"


@dataclass(frozen=True, slots=True)
class CheckpointKind:
    """The kind of one checkpoint."""

    kind: str
    """`lora` if it holds an adapter, `whisper` if the model is one, else `full`, as of Baseten."""
    base_model: str | None
    """The model that was trained on, as the adapter or the manifest's origin names it."""
    adapter: dict[str, Any] | None
    """The configuration of its adapter; None if it has none that can be read."""


def checkpoint_kind(pairs: Sequence[tuple[JobCheckpoints, CheckpointItem]]) -> list[CheckpointKind]:
    """The kind of each checkpoint, in the order of `pairs`.

    Reads small configuration files, several at a time, and files of equal digests once: most
    checkpoints of a job share them. A damaged or missing file is ignored: `verify` reports it.

    Raises:
        StoreError: a store refused.
    """
    entries = [_config_entry(item) for _, item in pairs]
    wanted = {
        entry.xxh3_128: (source, item, entry)
        for (source, item), entry in zip(pairs, entries, strict=True)
        if entry is not None and entry.size <= _MAX_CONFIG_BYTES
    }
    read = in_parallel(lambda one: _read(*one), list(wanted.values()), _READERS)
    known = dict(zip(wanted, read, strict=True))
    return [
        _kind_of(item, entry, known.get(entry.xxh3_128) if entry else None)
        for (_, item), entry in zip(pairs, entries, strict=True)
    ]


def _kind_of(
    item: CheckpointItem, entry: FileEntry | None, config: dict[str, Any] | None
) -> CheckpointKind:
    base_model = item.manifest.origin.get("base_model")
    if entry is None and item.manifest.origin.get("adapter"):  # a file of an adapter's weights
        return CheckpointKind("lora", _text(base_model), None)
    if entry is None or entry.path == MODEL_CONFIG:
        whisper = (config or {}).get("model_type") == _WHISPER
        return CheckpointKind(_WHISPER if whisper else "full", _text(base_model), None)
    named = (config or {}).get("base_model_name_or_path")
    return CheckpointKind("lora", _text(named or base_model), config)


def _config_entry(item: CheckpointItem) -> FileEntry | None:
    """The configuration file of the adapter, in any folder, else that of the model."""
    files = searched(item.manifest.files, ADAPTER_CONFIG)
    adapter = next((e for e in files if e.path.rpartition("/")[2] == ADAPTER_CONFIG), None)
    return adapter or item.manifest.entry(MODEL_CONFIG)


def _read(source: JobCheckpoints, item: CheckpointItem, entry: FileEntry) -> dict[str, Any] | None:
    try:
        config = json.loads(read_file(source, item, entry))
    except (CheckpointCorruptError, CheckpointNotFoundError, ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) else None


def _text(base_model: object) -> str | None:
    return base_model if isinstance(base_model, str) else None
