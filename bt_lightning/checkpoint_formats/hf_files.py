"""Names and contents that Hugging Face libraries share: weights, configurations, shards."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.checkpoint_formats.tensor_file_checks import (
    INDEX,
    UnknownContentError,
    check_index,
    check_shard_names,
    check_tensor_file,
    is_checkpoint_name,
)
from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_limits import RECORD

if TYPE_CHECKING:
    from collections.abc import Collection

    from bt_lightning.checkpoint_formats.folder_view import FolderView

CONFIG: Final = "config.json"
ADAPTER_CONFIG: Final = "adapter_config.json"
_CHECKED_JSON: Final = frozenset(
    {CONFIG, ADAPTER_CONFIG, "generation_config.json", "preprocessor_config.json"}
    | {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json"}
)
_ADAPTER_WEIGHTS: Final = frozenset({"adapter_model.safetensors", "adapter_model.bin"})
_PARSED_BYTES: Final = 262_144
_WEIGHTS: Final = re.compile(
    r"(?:.*/)?(?:adapter_model|model|pytorch_model|diffusion_pytorch_model|pytorch_lora_weights"
    r"|consolidated|pytorch_model_fsdp)"
    r"(?:_\d+)?(?:\.[a-z0-9_]+)?(?:-\d{5,6}-of-\d{5,6})?\.(?:safetensors|bin|pth)"
)


def is_weights(path: str) -> bool:
    """Whether HF libraries write weights under this name."""
    return _WEIGHTS.fullmatch(path) is not None


def check_json_files(view: FolderView) -> None:
    """Raise `CheckpointCorruptError` if a known file of JSON is cut short."""
    for path in _CHECKED_JSON.intersection(view.files):
        size = view.files[path]
        if size <= _PARSED_BYTES:
            view.read_object(path, RECORD)
        elif view.read(path, size - 2, 2).rstrip()[-1:] != b"}":
            msg = f"{path} is not whole"
            raise CheckpointCorruptError(msg)


def check_tensor_files(view: FolderView, paths: Collection[str]) -> bool:
    """Check every file of tensors; whether one of them holds weights."""
    for path in paths:
        folder, slash, name = path.rpartition("/")
        if name in _ADAPTER_WEIGHTS and f"{folder}{slash}{ADAPTER_CONFIG}" not in paths:
            msg = f"{folder}{slash}{ADAPTER_CONFIG} is missing, which PEFT writes last"
            raise CheckpointCorruptError(msg)
    indexes = [p for p in paths if p.endswith(INDEX) and is_weights(p.removesuffix(INDEX))]
    indexed = {shard for index in indexes for shard in check_index(view, index)}
    check_shard_names(view, indexed)
    for path in paths:
        if is_weights(path) and path not in indexed:
            check_tensor_file(view, path)
        elif is_checkpoint_name(path) and path not in indexed:
            with contextlib.suppress(UnknownContentError):  # a file of another kind
                check_tensor_file(view, path)
    return bool(indexed) or any(is_weights(path) for path in paths)


def model_facts(view: FolderView) -> dict[str, Any]:
    """Base model, and whether it is an adapter."""
    adapters = sorted(p for p in view.files if p.rpartition("/")[2] == ADAPTER_CONFIG)
    config = view.optional_object(adapters[0] if adapters else CONFIG, RECORD)
    base = config.get("base_model_name_or_path" if adapters else "_name_or_path")
    return {
        "base_model": base if isinstance(base, str) and base else None,
        "adapter": bool(adapters),
    }
