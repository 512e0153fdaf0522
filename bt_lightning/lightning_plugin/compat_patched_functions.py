"""Patches functions of Lightning that bypass the CheckpointIO, so that they handle our checkpoints.

Each is patched once per process, in every loaded namespace (`lightning`, `pytorch_lightning`). If a
newer Lightning lacks one, nothing is patched.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bt_lightning.lightning_plugin.compat import takes_weights_only
from bt_lightning.lightning_plugin.lightning_or_pytorch_lightning import model_checkpoint_classes
from bt_lightning.lightning_plugin.trainer_ranks import ranks_of

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

Load = Callable[[Any, bool | None], dict[str, Any]]
"""Loads one checkpoint, with a `map_location` and `weights_only`."""


def patch_load_from_checkpoint(find: Callable[[str | os.PathLike[str]], Load | None]) -> None:
    """Let `load_from_checkpoint` of modules and datamodules use the loader that `find` returns.

    It reads files without the CheckpointIO and cannot open a directory. Source:
    `lightning.pytorch.core.saving._load_from_checkpoint`.
    """
    for name in ("lightning.pytorch.core.saving", "pytorch_lightning.core.saving"):
        module = sys.modules.get(name)
        original = getattr(module, "pl_load", None)
        if original is None or getattr(original, "patched_by_bt_lightning", False):
            continue
        vars(module)["pl_load"] = _patched_load(original, find)


def _patched_load(
    original: Callable[..., Any], find: Callable[[str | os.PathLike[str]], Load | None]
) -> Callable[..., Any]:
    takes = takes_weights_only(original)

    def pl_load(path: Any, map_location: Any = None, weights_only: Any = None) -> Any:
        if isinstance(path, str | os.PathLike) and (load := find(path)) is not None:
            return load(map_location, weights_only)
        more = {"weights_only": weights_only} if takes else {}
        return original(path, map_location=map_location, **more)

    pl_load.patched_by_bt_lightning = True  # type: ignore[attr-defined]
    return pl_load


def patch_file_exists(
    is_our_url: Callable[[str, Trainer], bool], is_taken: Callable[[str], bool]
) -> None:
    """Let a `ModelCheckpoint` also call `is_taken` for a path for which `is_our_url` is true.

    It appends `-v1` to names that exist, and overwrites and deletes others. `is_our_url` must be
    the same on every rank; `is_taken` is called on rank 0, and its error is raised on all ranks.
    Source: `ModelCheckpoint.file_exists`.
    """
    for kind in model_checkpoint_classes():
        original = kind.file_exists
        if not getattr(original, "patched_by_bt_lightning", False):
            kind.file_exists = _patched_file_exists(original, is_our_url, is_taken)  # type: ignore[method-assign]


def _patched_file_exists(
    original: Callable[..., bool],
    is_our_url: Callable[[str, Trainer], bool],
    is_taken: Callable[[str], bool],
) -> Callable[..., bool]:
    @functools.wraps(original)
    def file_exists(self: Any, filepath: Any, trainer: Trainer) -> bool:
        if original(self, filepath, trainer):  # the same on every rank
            return True
        path = str(filepath)
        return is_our_url(path, trainer) and ranks_of(trainer).from_zero(lambda: is_taken(path))

    file_exists.patched_by_bt_lightning = True  # type: ignore[attr-defined]
    return file_exists


def patch_ckpt_path(find: Callable[[Trainer, str], str | None]) -> None:
    """Let `find` resolve `ckpt_path="last"` and `"best"` first, except in a fit.

    Source: `_CheckpointConnector._parse_ckpt_path`, which runs before any callback.
    """
    for package in ("lightning.pytorch", "pytorch_lightning"):
        module = sys.modules.get(f"{package}.trainer.connectors.checkpoint_connector")
        kind = getattr(module, "_CheckpointConnector", None)
        original = getattr(kind, "_parse_ckpt_path", None)
        if kind is None or original is None or getattr(original, "patched_by_bt_lightning", False):
            continue
        kind._parse_ckpt_path = _patched_parse_ckpt_path(original, find)


def _patched_parse_ckpt_path(
    original: Callable[..., Any], find: Callable[[Trainer, str], str | None]
) -> Callable[..., Any]:
    @functools.wraps(original)
    def parse(connector: Any, state_fn: Any, ckpt_path: Any, *args: Any, **kwargs: Any) -> Any:
        if ckpt_path in ("last", "best") and state_fn.value != "fit":
            ckpt_path = find(connector.trainer, ckpt_path) or ckpt_path
        return original(connector, state_fn, ckpt_path, *args, **kwargs)

    parse.patched_by_bt_lightning = True  # type: ignore[attr-defined]
    return parse
