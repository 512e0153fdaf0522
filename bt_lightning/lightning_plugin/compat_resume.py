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


def after_callbacks_restored(trainer: Trainer, act: Callable[[dict[str, Any]], None]) -> None:
    """Run `act` once with the loaded checkpoint, after every hook that may have edited it.

    Source: `_CheckpointConnector._restore_modules_and_callbacks`, whose last step is the callbacks.
    """
    connector: Any = trainer._checkpoint_connector
    original = connector.restore_callbacks

    def restore_callbacks() -> None:
        vars(connector).pop("restore_callbacks", None)
        original()
        act(connector._loaded_checkpoint)

    vars(connector)["restore_callbacks"] = restore_callbacks


def after_train_start(trainer: Trainer, act: Callable[[], None]) -> None:
    """Run `act` once, after every `on_train_start` hook and before anything is trained.

    What was registered before runs first. Source: `_FitLoop.on_run_start`, whose last hook is the
    strategy's.
    """
    strategy: Any = trainer.strategy
    original = strategy.on_train_start

    def on_train_start() -> None:
        undo_after_train_start(trainer)
        original()
        act()

    vars(strategy)["on_train_start"] = on_train_start


def undo_after_train_start(trainer: Trainer) -> None:
    """Undo `after_train_start` and `after_callbacks_restored`; idempotent."""
    vars(trainer.strategy).pop("on_train_start", None)
    vars(trainer._checkpoint_connector).pop("restore_callbacks", None)


def epochs_of(checkpoint: dict[str, Any]) -> tuple[int, int]:
    """The fewest and the most epochs that a run that resumes from `checkpoint` may have behind it.

    Lightning counts the last one as completed if its batches are trained.
    """
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    return int(epochs["completed"]), int(epochs["ready"])


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
