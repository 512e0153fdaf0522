"""Private names of Lightning for resuming a fit."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from bt_lightning.errors import InvalidSettingError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning.pytorch import Trainer

_EXPLICIT = "pass the path yourself: trainer.fit(..., ckpt_path=bt_lightning.resume_path())"


def wrap_resume_start(
    trainer: Trainer, choose: Callable[[Callable[[Any], None], Any], None]
) -> None:
    """Let `choose(load, user_path)` run once, where Lightning reads the checkpoint it resumes from.

    `load(path)` is Lightning's own load; with None it loads nothing. At this point the process
    group, the callbacks and the model are set up, and nothing is restored yet: each strategy later
    restores the loaded checkpoint in its own order. Source: `_CheckpointConnector.resume_start`.
    """
    connector = trainer._checkpoint_connector
    original = getattr(connector, "resume_start", None)
    if original is None:
        msg = f"this Lightning has no _CheckpointConnector.resume_start, {_EXPLICIT}"
        raise InvalidSettingError(msg)

    def resume_start(checkpoint_path: Any = None, *args: Any, **kwargs: Any) -> None:
        unwrap_resume_start(trainer)
        choose(lambda path: original(path, *args, **kwargs), checkpoint_path)

    vars(connector)["resume_start"] = resume_start


def unwrap_resume_start(trainer: Trainer) -> None:
    """Undo `wrap_resume_start`; idempotent."""
    vars(trainer._checkpoint_connector).pop("resume_start", None)


def record_path_selection() -> None:
    """Patch Lightning to record whether the user gave the path of a run or Lightning chose it.

    Under SLURM, or with an `OnExceptionCheckpoint`, it chooses a path if the user gave none.
    Idempotent. Source: `_CheckpointConnector._select_ckpt_path`, which runs before every hook.
    """
    for name in ("lightning.pytorch", "pytorch_lightning"):
        module = sys.modules.get(f"{name}.trainer.connectors.checkpoint_connector")
        kind = getattr(module, "_CheckpointConnector", None)
        original = getattr(kind, "_select_ckpt_path", None)
        if original is not None and not hasattr(original, "recorded_by_bt_lightning"):
            kind._select_ckpt_path = _recording(original)  # type: ignore[union-attr]  # found there


def _recording(original: Callable[..., Any]) -> Callable[..., Any]:
    def _select_ckpt_path(self: Any, state_fn: Any, ckpt_path: Any, *args: Any, **more: Any) -> Any:
        asked = ckpt_path is not None or self._user_managed
        path = original(self, state_fn, ckpt_path, *args, **more)
        vars(self)["bt_lightning_selection"] = (asked, path)
        return path

    vars(_select_ckpt_path)["recorded_by_bt_lightning"] = True
    return _select_ckpt_path


def selection(trainer: Trainer) -> tuple[bool, str | None]:
    """Whether the user gave the path to start from; if not, the path that Lightning found."""
    asked, path = vars(trainer._checkpoint_connector).get("bt_lightning_selection", (True, None))
    return asked, None if asked or path is None else str(path)


def restore_weights_only(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Load only the weights of `checkpoint`, through Lightning's hooks."""
    connector = trainer._checkpoint_connector
    connector._loaded_checkpoint = checkpoint
    try:
        connector.restore_model()
    finally:
        connector._loaded_checkpoint = {}
        connector._ckpt_path = None
