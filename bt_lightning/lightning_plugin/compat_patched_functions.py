"""Functions of Lightning that work past the CheckpointIO, and are taught what it wrote.

Each is replaced once a process, in every namespace that is loaded; a newer Lightning without one of
them is left as it is.
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
"""Loads what was found, by a `map_location` and `weights_only`."""


def teach_load_from_checkpoint(find: Callable[[str | os.PathLike[str]], Load | None]) -> None:
    """Let `load_from_checkpoint` of modules and datamodules read what `find` finds.

    It reads files with a function of its own instead of the CheckpointIO, and could not open a
    directory. Source: `lightning.pytorch.core.saving._load_from_checkpoint`.
    """
    for name in ("lightning.pytorch.core.saving", "pytorch_lightning.core.saving"):
        module = sys.modules.get(name)
        original = getattr(module, "pl_load", None)
        if original is None or getattr(original, "knows_bt_lightning", False):
            continue
        vars(module)["pl_load"] = _taught(original, find)


def _taught(
    original: Callable[..., Any], find: Callable[[str | os.PathLike[str]], Load | None]
) -> Callable[..., Any]:
    takes = takes_weights_only(original)

    def pl_load(path: Any, map_location: Any = None, weights_only: Any = None) -> Any:
        if isinstance(path, str | os.PathLike) and (load := find(path)) is not None:
            return load(map_location, weights_only)
        more = {"weights_only": weights_only} if takes else {}
        return original(path, map_location=map_location, **more)

    pl_load.knows_bt_lightning = True  # type: ignore[attr-defined]
    return pl_load


def teach_file_exists(
    concerns: Callable[[str, Trainer], bool], is_taken: Callable[[str], bool]
) -> None:
    """Let a `ModelCheckpoint` ask `is_taken` of names that `concerns` and its filesystem has not.

    It appends `-v1` to names that are taken, and overwrites and deletes what it takes for its own.
    `concerns` says the same on every rank; `is_taken` is called on rank 0, and what it raises is
    raised on all. Source: `ModelCheckpoint.file_exists`.
    """
    for kind in model_checkpoint_classes():
        original = kind.file_exists
        if not getattr(original, "knows_bt_lightning", False):
            kind.file_exists = _asking(original, concerns, is_taken)  # type: ignore[method-assign]


def _asking(
    original: Callable[..., bool],
    concerns: Callable[[str, Trainer], bool],
    is_taken: Callable[[str], bool],
) -> Callable[..., bool]:
    @functools.wraps(original)
    def file_exists(self: Any, filepath: Any, trainer: Trainer) -> bool:
        if original(self, filepath, trainer):  # the same on every rank
            return True
        path = str(filepath)
        return concerns(path, trainer) and ranks_of(trainer).from_zero(lambda: is_taken(path))

    file_exists.knows_bt_lightning = True  # type: ignore[attr-defined]
    return file_exists


def teach_words(find: Callable[[Trainer, str], str | None]) -> None:
    """Let `find` say first what `ckpt_path="last"` and `"best"` mean, except in a fit.

    Source: `_CheckpointConnector._parse_ckpt_path`, which runs before any callback is asked.
    """
    for package in ("lightning.pytorch", "pytorch_lightning"):
        module = sys.modules.get(f"{package}.trainer.connectors.checkpoint_connector")
        kind = getattr(module, "_CheckpointConnector", None)
        original = getattr(kind, "_parse_ckpt_path", None)
        if kind is None or original is None or getattr(original, "knows_bt_lightning", False):
            continue
        kind._parse_ckpt_path = _finding(original, find)


def _finding(
    original: Callable[..., Any], find: Callable[[Trainer, str], str | None]
) -> Callable[..., Any]:
    @functools.wraps(original)
    def parse(connector: Any, state_fn: Any, ckpt_path: Any, *args: Any, **kwargs: Any) -> Any:
        if ckpt_path in ("last", "best") and state_fn.value != "fit":
            ckpt_path = find(connector.trainer, ckpt_path) or ckpt_path
        return original(connector, state_fn, ckpt_path, *args, **kwargs)

    parse.knows_bt_lightning = True  # type: ignore[attr-defined]
    return parse
