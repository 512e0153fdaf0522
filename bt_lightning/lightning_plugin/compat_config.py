"""The `config.yaml` that LightningCLI saves once: a job starts again, and tests what it has."""

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


def teach_saved_config() -> None:
    """Let LightningCLI go on beside the config file of an earlier start; idempotent.

    It refuses any run whose folder has such a file. Beside `BTLightning` such a folder is the
    same job's: a fit with the same config goes on, `validate`, `test` and `predict` leave the file
    as the fit wrote it. A fit with another config is refused as ever.
    Source: `SaveConfigCallback.setup`.
    """
    for name in ("lightning.pytorch.cli", "pytorch_lightning.cli"):
        kind = getattr(sys.modules.get(name), "SaveConfigCallback", None)
        original = getattr(kind, "setup", None)
        if kind is None or original is None or getattr(original, "knows_bt_lightning", False):
            continue
        kind.setup = _taught(original)


def _taught(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def setup(self: Any, trainer: Trainer, pl_module: Any, stage: str) -> None:
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        beside = any(each.state_key == _OURS for each in callbacks)
        if beside and self.save_to_log_dir and not (self.already_saved or self.overwrite):
            folder = trainer.log_dir  # of all ranks: it broadcasts
            if ranks_of(trainer).from_zero(lambda: _is_there(self, folder, stage)):
                self.already_saved = stage != "fit"
                self.overwrite = True  # with the same
        original(self, trainer, pl_module, stage)

    setup.knows_bt_lightning = True  # type: ignore[attr-defined]
    return setup


def _is_there(callback: Any, folder: str | None, stage: str) -> bool:
    """Rank 0: whether the file that would be saved is there, as this job left it."""
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
    """Without comments: the first names the version of Lightning."""
    return [line for line in text.splitlines() if line and not line.startswith("#")]
