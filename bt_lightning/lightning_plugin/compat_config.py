"""Patches LightningCLI to accept its saved `config.yaml` when a job restarts."""

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


def patch_saved_config() -> None:
    """Let LightningCLI accept the config file of an earlier start of the job; idempotent.

    It refuses any run whose folder has such a file. With `BTLightning`, a fit with the same config
    continues, and `validate`, `test` and `predict` keep the file of the fit. A fit with another
    config is still refused. Source: `SaveConfigCallback.setup`.
    """
    for name in ("lightning.pytorch.cli", "pytorch_lightning.cli"):
        kind = getattr(sys.modules.get(name), "SaveConfigCallback", None)
        original = getattr(kind, "setup", None)
        if kind is None or original is None or getattr(original, "patched_by_bt_lightning", False):
            continue
        kind.setup = _patched_setup(original)


def _patched_setup(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def setup(self: Any, trainer: Trainer, pl_module: Any, stage: str) -> None:
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        is_ours = any(each.state_key == _OURS for each in callbacks)
        if is_ours and self.save_to_log_dir and not (self.already_saved or self.overwrite):
            folder = trainer.log_dir  # on all ranks, since it broadcasts
            if ranks_of(trainer).from_zero(lambda: _is_same_config(self, folder, stage)):
                self.already_saved = stage != "fit"
                self.overwrite = True  # with the same content
        original(self, trainer, pl_module, stage)

    setup.patched_by_bt_lightning = True  # type: ignore[attr-defined]
    return setup


def _is_same_config(callback: Any, folder: str | None, stage: str) -> bool:
    """Called on rank 0: whether the config file exists and, for a fit, has the same config."""
    path = Path(os.fspath(folder or "."), callback.config_filename)
    try:
        text = path.read_text()
    except (OSError, ValueError):
        return False
    if stage != "fit" or _values(text) == _values(
        callback.parser.dump(callback.config, skip_none=False)
    ):
        log.info("%s stays as an earlier start wrote it", path)
        return True
    return False


def _values(text: str) -> list[str]:
    """The lines without comments, of which the first names the version of Lightning."""
    return [line for line in text.splitlines() if line and not line.startswith("#")]
