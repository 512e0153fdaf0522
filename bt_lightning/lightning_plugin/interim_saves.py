"""Makes the saves that no `ModelCheckpoint` asks for: at an interval, by a signal, at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bt_lightning.lightning_plugin.trainer_ranks import ranks_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lightning.pytorch import Trainer

    from bt_lightning.session.writer_session import WriterSession

Reason = Literal["interval", "signal", "end"]


class InterimSaves:
    """The interim saves of one fit, on every rank.

    Args:
        folder: the directory of the fit's checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reason: Reason | None = None
        """Why a save is made, while it is; None otherwise."""

    def save(self, trainer: Trainer, reason: Reason) -> None:
        """Called on every rank at a boundary: save its state as `interim-N` or `final-N`."""
        kind = "final" if reason == "end" else "interim"
        self.reason = reason
        try:
            trainer.save_checkpoint(self.folder / f"{kind}-{trainer.global_step}")
        finally:
            self.reason = None

    def save_end(
        self,
        trainer: Trainer,
        session: WriterSession | None,
        left_s: Callable[[], float],
        meanwhile: Callable[[], None],
    ) -> None:
        """Called on every rank at the end of the last epoch: save the state that the fit ends with.

        Not if another save is of its step: inside an epoch that `max_steps` cuts off, that one can
        be trained on from as if it had not been cut. `session` is that of the rank that writes. A
        save in progress is waited for, for up to `left_s()` seconds, or this one might be skipped;
        the other ranks call `meanwhile` until then, since it may have parts of theirs.
        """

        def is_missing() -> bool:
            saves = session.saves if session is not None else None
            if session is not None and session.config.parts is not None:
                session.wait_for_saves(left_s)  # another rank's part may be missing
            if session is None or saves is None or saves.has_save_of(trainer.global_step, left_s):
                return False
            session.wait_for_saves(left_s)
            return True

        if ranks_of(trainer).from_slow_zero(is_missing, meanwhile=meanwhile):
            self.save(trainer, "end")
