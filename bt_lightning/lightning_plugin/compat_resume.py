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
        try:
            original()
        finally:
            vars(connector).pop("restore_callbacks", None)
        act(connector._loaded_checkpoint)

    vars(connector)["restore_callbacks"] = restore_callbacks


def convert_before_restore(trainer: Trainer) -> None:
    """Let weights of double precision be loaded into such: Lightning converts behind the restore.

    Source: `DoublePrecision.convert_module`, called by `Strategy.setup`.
    """
    if trainer.precision == "64-true":
        trainer.lightning_module.double()


def restores_run(trainer: Trainer) -> bool:
    """Whether the checkpoint that callbacks are given is that which the run resumes from.

    A search for a learning rate or a batch size restores one of its own in between.
    """
    return "restore_callbacks" in vars(trainer._checkpoint_connector)


def after_training_restored(trainer: Trainer, act: Callable[[], None]) -> None:
    """Run `act` once, when Lightning has restored loops, optimizers and schedulers.

    Source: `_CheckpointConnector.resume_end`.
    """
    connector: Any = trainer._checkpoint_connector
    original = connector.resume_end

    def resume_end() -> None:
        vars(connector).pop("resume_end", None)
        act()
        original()

    vars(connector)["resume_end"] = resume_end


def when_restored(trainer: Trainer, act: Callable[[], None]) -> None:
    """Called in `on_fit_start`: run `act` once, when the state is restored; that may be now.

    A strategy whose `restore_checkpoint_after_setup` is restored behind that hook. What a load
    registers by `after_training_restored` runs before. Source: `Trainer._run`.
    """
    if trainer.strategy.restore_checkpoint_after_setup:
        after_training_restored(trainer, act)
    else:
        act()


def after_train_start(trainer: Trainer, act: Callable[[], None]) -> None:
    """Run `act` once, after every `on_train_start` hook and before anything is trained.

    What was registered before runs first. Source: `_FitLoop.on_run_start`, whose last hook is the
    strategy's.
    """
    strategy: Any = trainer.strategy
    original = strategy.on_train_start

    def on_train_start() -> None:
        undo_waiting(trainer)
        original()
        act()

    vars(strategy)["on_train_start"] = on_train_start


def begin_next_epoch(trainer: Trainer) -> None:
    """Begin with the next epoch if the loaded one is over, with `max_steps` as well.

    With `max_steps`, Lightning always takes the loaded epoch for unfinished: it ends it again, with
    all hooks, and counts it twice. Source: `_FitLoop.restarting`.
    """
    loop: Any = trainer.fit_loop
    progress = loop.epoch_progress
    epoch = progress.current
    if not loop._iteration_based_training() or not epoch.ready == epoch.started == epoch.processed:
        return
    loop._restarting = loop.epoch_loop.restarting = False
    for part in (progress.total, epoch):
        part.completed = part.processed


def forget_resume(trainer: Trainer) -> None:
    """Let the Trainer's next fit begin as if this one had trained what it found trained.

    A loop takes the loaded state for one that it resumes from until it has trained; the next fit
    would not begin its dataloader anew. Source: `_Loop.load_state_dict`, `on_iteration_done`.
    """
    loops: list[Any] = [trainer.fit_loop]
    while loops:
        state = vars(loops.pop())
        state.update(_restarting=False)
        for name in ("_loaded_from_state_dict", "_resuming_from_checkpoint"):  # from 2.5 on
            if name in state:
                state[name] = False
        loops += [part for part in state.values() if hasattr(part, "_restarting")]


def undo_waiting(trainer: Trainer) -> None:
    """Undo what waits for a hook, if the fit ended before it; idempotent."""
    vars(trainer.strategy).pop("on_train_start", None)
    for name in ("restore_callbacks", "resume_end"):
        vars(trainer._checkpoint_connector).pop(name, None)


def epochs_of(checkpoint: dict[str, Any]) -> tuple[int, int]:
    """The fewest and the most epochs that a run that resumes from `checkpoint` may have behind it.

    Lightning counts the last one as completed if its batches are trained.
    """
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    return int(epochs["completed"]), int(epochs["ready"])


def skip_training(trainer: Trainer) -> None:
    """Let the fit that is being set up restore its state, and train nothing.

    As `_FitLoop.run` does where it finds nothing left, with the last epoch counted as over in the
    total too. Source: `Trainer._run_stage`, which calls it after the restore.
    """
    loop = trainer.fit_loop

    def run() -> None:
        vars(loop).pop("run", None)
        loop.setup_data()
        progress: Any = loop.epoch_progress
        for part in (progress.current, progress.total):
            part.completed = part.processed

    vars(loop)["run"] = run


def skips_training(trainer: Trainer) -> bool:
    """Whether `skip_training` was called for the fit that is being set up."""
    return "run" in vars(trainer.fit_loop)


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
