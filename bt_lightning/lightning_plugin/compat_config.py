"""Lets LightningCLI go on with a run that was started before: its `config.yaml`, its arguments."""

from __future__ import annotations

import functools
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bt_lightning.lightning_plugin.trainer_ranks import ranks_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning.pytorch import Trainer

log = logging.getLogger(__name__)

_OURS = "BTLightning"
_MODULES = ("lightning.pytorch.cli", "pytorch_lightning.cli")


def patch_saved_config() -> None:
    """Let LightningCLI accept the config file of an earlier start of the job; idempotent.

    It refuses any run whose folder has such a file. With `BTLightning`, a fit with the same config
    continues, and `validate`, `test` and `predict` keep the file of the fit. A fit that goes on
    with another config keeps the old file under another name, and says so; a fit that begins anew
    is still refused. Source: `SaveConfigCallback.setup`.
    """
    for kind in _classes("SaveConfigCallback"):
        original = kind.setup
        if not getattr(original, "patched_by_bt_lightning", False):
            kind.setup = _patched_setup(original)


def command_line(trainer: Trainer) -> str:
    """What LightningCLI has read of files and arguments, in whatever order; empty without it."""
    kinds = tuple(_classes("SaveConfigCallback"))
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    found = next((each for each in callbacks if isinstance(each, kinds)), None)
    return "" if found is None else "\n".join(_values(_dump(found)))


def _classes(name: str) -> list[Any]:
    """The classes of that name in the imported packages."""
    found = (getattr(sys.modules.get(module), name, None) for module in _MODULES)
    return [kind for kind in found if kind is not None]


def _patched_setup(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def setup(self: Any, trainer: Trainer, pl_module: Any, stage: str) -> None:
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        ours = [each for each in callbacks if each.state_key == _OURS]
        if ours and self.save_to_log_dir and not (self.already_saved or self.overwrite):
            folder = trainer.log_dir  # on all ranks, since it broadcasts
            goes_on = any(each.goes_on for each in ours)
            if ranks_of(trainer).from_zero(lambda: _may_stay(self, folder, stage, goes_on=goes_on)):
                self.already_saved = stage != "fit"
                self.overwrite = True  # with the same content
        original(self, trainer, pl_module, stage)

    setup.patched_by_bt_lightning = True  # type: ignore[attr-defined]
    return setup


def _may_stay(callback: Any, folder: str | None, stage: str, *, goes_on: bool) -> bool:
    """Called on rank 0: whether the config file exists and is no other run's."""
    path = Path(os.fspath(folder or "."), callback.config_filename)
    try:
        text = path.read_text()
    except (OSError, ValueError):
        return False
    if stage != "fit" or _values(text) == _values(_dump(callback)):
        log.info("%s stays as an earlier start wrote it", path)
        return True
    if goes_on:
        kept = _free_name(path)
        path.rename(kept)
        log.warning("the fit goes on with another config: that of its earlier start is %s", kept)
    return False


def _free_name(path: Path) -> Path:
    number = 1
    while (kept := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
        number += 1
    return kept


def _dump(callback: Any) -> str:
    text: str = callback.parser.dump(callback.config, skip_none=False)
    return text


def _values(text: str) -> list[str]:
    """The lines without comments, of which the first names the version of Lightning."""
    return [line for line in text.splitlines() if line and not line.startswith("#")]
