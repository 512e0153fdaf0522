"""The moments at which a run may save, and what is done there that no `ModelCheckpoint` asked for.

A signal, or the interval, is obeyed at a boundary, on every rank at the same one: there the state
is that of one step, and what is saved resumes exactly. This callback stands behind all others, so
that a save that a `ModelCheckpoint` just made of the same state is not made twice.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
import warnings
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from bt_lightning.errors import DrainTimeoutError
from bt_lightning.lightning_plugin import compat, compat_signals
from bt_lightning.lightning_plugin.lightning_or_pytorch_lightning import Checkpoint
from bt_lightning.lightning_plugin.signals import ReceivedSignal, Signals
from bt_lightning.lightning_plugin.trainer_ranks import ranks_of
from bt_lightning.lightning_plugin.weight_change_watch import overrides
from bt_lightning.localdir.event_log import note
from bt_lightning.preemption import ASSUMED_GRACE_S, Situation, Word, judge, rest_s
from bt_lightning.rank_protocol import VALIDATED, Position, Request
from bt_lightning.session.fit_ranks import FitRanks
from bt_lightning.session.save_schedule import SaveSchedule

if TYPE_CHECKING:
    from pathlib import Path

    from lightning.pytorch import LightningModule, Trainer

    from bt_lightning.session.agree_on_boundary import RankAgreement, SingleRankAgreement
    from bt_lightning.session.options import Options
    from bt_lightning.session.writer_session import WriterSession

_EPOCH_END = VALIDATED + 1
_OURS = "bt_lightning."
_SWAPPING = ("on_validation_start", "on_validation_epoch_start", "on_validation_model_eval")


class SaveBoundary(Checkpoint):
    """One a fit, on every rank; the rank that writes also has the session."""

    def __init__(self, options: Options, root: Path) -> None:
        self.signals = Signals()
        self.reason: str | None = None
        """Why the save that is being made is made, if no `ModelCheckpoint` asked for it."""
        self._options = options
        self._root = root
        self._grace_s = options.grace.total_seconds() if options.grace is not None else None
        self._session: WriterSession | None = None
        self._pace: SaveSchedule | None = None
        self._agreement: SingleRankAgreement | RankAgreement | None = None
        self._position: Position = (0, 0)
        self._marked = self._measured = 0
        self._swaps = self._requeued = False
        self._places = 0
        self._company: FitRanks | None = None
        self.ends = False
        """Whether all ranks end by a signal, once the fit is over."""

    def listen(self, trainer: Trainer) -> None:
        """Every rank, at setup: hear signals."""
        self.signals.listen(trainer, self._died if trainer.is_global_zero else lambda _: None)

    def meet(self, trainer: Trainer) -> None:
        """Every rank, when the process group is there."""
        self._company = FitRanks(ranks_of(trainer))

    def exchange(self, payload: bytes) -> list[bytes] | None:
        """As `FitRanks.exchange`, in the time that a signal left."""
        assert self._company is not None
        return self._company.exchange(payload, self.left_s)

    def fail(self, error: BaseException) -> None:
        """Any rank: as `FitRanks.fail`."""
        if self._company is not None:
            self._company.fail(error)

    def join(
        self, trainer: Trainer, module: LightningModule, session: WriterSession | None
    ) -> None:
        """Every rank, when the fit starts: stand behind every other callback."""
        self._session = session
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        owners = [o for o in (*callbacks, module) if not type(o).__module__.startswith(_OURS)]
        if self._company is not None:
            self._company.begin()
        self._swaps = any(overrides(o, hook) for o in owners for hook in _SWAPPING)
        trainer.callbacks = [*callbacks, self]  # type: ignore[attr-defined]

    def finish(self, session: WriterSession) -> None:
        """Rank 0: end the session of a fit that is over, in the time that there is.

        Raises:
            DrainTimeoutError: not all is in the store, and no signal came that explains it.
            DirectoryUnusableError, TornSnapshotError, UploadFailedError: as `WriterSession.poll`.
        """
        try:
            with self.signals.held():
                session.finish(self.left_s)
        except DrainTimeoutError as error:
            if self.signals.told is None:
                raise
            warnings.warn(str(error), stacklevel=2)  # the exit status says the rest

    def leave(self, trainer: Trainer, session: WriterSession | None, *, failed: bool) -> None:
        """Every rank: the fit is over, however it ended. Rank 0 notes it, for who starts it again.

        `session` is over too; None if it never began, or on the other ranks.
        """
        if self._agreement is not None:
            self._agreement.close()
        if self._company is not None:
            if trainer.is_global_zero or not failed:  # who catches an error trains on, as others do
                self._part(self._company)
            self._company.close()
        self._agreement = self._session = self._company = None
        self.signals.close()
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        trainer.callbacks = [c for c in callbacks if c is not self]  # type: ignore[attr-defined]
        if session is None:
            return
        newest, told = session.newest, self.signals.told
        id_, step = (newest.checkpoint_id, newest.step) if newest is not None else (None, None)
        facts: dict[str, Any] = {"checkpoint": id_, "step": step}
        if told is not None:
            self._preempted(told, **facts)
        elif self._pace is not None:  # it began to train
            self._note("ended", failed=failed, **facts)

    def _part(self, company: FitRanks) -> None:
        """No rank leaves a fit before rank 0 does, and all end alike."""
        with self.signals.held():
            self.ends = company.end_fit(lambda: self.signals.told is not None)
        if self.ends and self.signals.told is None:  # another rank was
            self.signals.told = ReceivedSignal(signal.SIGTERM, time.monotonic())

    def left_s(self) -> float:
        """How long the end of the run may take from now on, by a signal that came."""
        told = self.signals.told
        if told is None or self._grace_s is None:
            return math.inf
        return rest_s(self._grace_s - (time.monotonic() - told.at))

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.start()
        if self._session is not None:
            self._pace = SaveSchedule(self._options, self._root)
            self._marked = self._measured = self._taken
            self._note("began", step=trainer.global_step)
        self._places = compat.validation_places(trainer)
        if self._company is not None:
            self._agreement = self._company.agreement(self._wish)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        self._position = (self._position[0] + 1, 0)
        if self._session is not None:
            self._measure(self._session)
        self._reach(trainer, compat.plain_batches(trainer))

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._places = compat.validation_places(trainer)
        if self._session is not None:
            self._session.timings.validation(time.monotonic(), begins=True)

    @override
    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        if self._session is not None:
            self._session.timings.validation_batch_ended()
        self._position = (self._position[0], self._position[1] + 1)
        self._reach(trainer)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._session is not None:
            self._session.timings.validation(time.monotonic(), begins=False)
        self._position = (self._position[0], VALIDATED)
        self._reach(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._position = (self._position[0], _EPOCH_END)
        self._reach(trainer)
        if self._session is not None:
            self._session.timings.exclude_until(time.monotonic())

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._agreement is not None:
            self._agreement.close()
            self._agreement = None

    def _wish(self) -> Request | None:
        """What this rank wants; called on any thread."""
        if self.signals.told is not None:
            return "stop"
        if self.signals.requeue is not None:
            return "requeue"
        return "save" if self._pace is not None and self._pace.is_due(time.monotonic()) else None

    def _reach(self, trainer: Trainer, room: int = 0) -> None:
        if self._agreement is None:
            return  # the sanity check before training
        position = self._position
        wish = self._agreement.due(position, room, self._places)
        if wish is not None:
            word = self._agreement.word(position, lambda: self._judge(trainer, wish))
            if word != "later":
                self._act(trainer, wish, word)
        self._marked = self._taken

    def _act(self, trainer: Trainer, wish: Request, word: Word) -> None:
        assert self._agreement is not None
        if wish == "requeue" and self._requeued:  # SLURM tells every rank: they are one wish
            self.signals.requeue = None
            self._agreement.done()
            return
        if word in {"save", "requeue"}:
            self.reason = "interval" if wish == "save" else "signal"
            try:
                trainer.save_checkpoint(self._root / f"interim-{trainer.global_step}")
            finally:
                self.reason = None
        requeue, self.signals.requeue = self.signals.requeue, None
        if self._pace is not None:
            self._pace.note_decision(time.monotonic(), saved=word == "save")
        if wish != "stop":
            self._agreement.done()
        if wish == "requeue" or word == "requeue":
            self._requeued = True
            compat_signals.requeue(trainer, requeue.signum if requeue else signal.SIGUSR1)
        if wish == "stop":
            raise self.end(trainer)

    def end(self, trainer: Trainer) -> SystemExit:
        """What ends this rank by the signal it was told of.

        One rank says so by its exit status, the last to end. Launchers kill the others when one
        fails, and would kill that one while it still publishes.
        """
        if self._company is not None:
            self._company.agreed()
        told = self.signals.told or ReceivedSignal(signal.SIGTERM, time.monotonic())
        return compat_signals.ended_by_signal(
            trainer, 128 + told.signum if trainer.is_global_zero else 0
        )

    def _judge(self, trainer: Trainer, wish: Request) -> tuple[Word, Position]:
        """Rank 0: what is to be done at this boundary, by what was measured."""
        session = self._session
        assert session is not None
        if wish == "stop" and self.signals.told is None:  # another rank was
            self.signals.told = ReceivedSignal(signal.SIGTERM, time.monotonic())
        later_s, until = self._exact_in(trainer, session)
        told = self.signals.requeue if wish == "requeue" else self.signals.told
        grace_s = ASSUMED_GRACE_S if self._grace_s is None else self._grace_s

        def left_s() -> float:
            return grace_s - (time.monotonic() - told.at if told is not None else 0.0)

        word: Word = "finish"
        while word == "finish":
            session.process_events(0.0)
            under_way = session.saves.saver.pending() if session.saves is not None else 0
            if wish == "save":
                batch = self._position[1] == 0
                if later_s == 0 and not under_way and not self._covered(session):
                    return "save", until
                return ("later" if batch and until[0] > self._position[0] else "leave"), until
            save_s = session.timings.save_s
            word = judge(
                Situation(
                    left_s=left_s(),
                    covered=later_s == 0 and self._covered(session),
                    safe=not (self._swaps and 0 < self._position[1] < VALIDATED),
                    under_way=under_way,
                    behind_s=under_way * (save_s or 0.0),
                    save_s=save_s,
                    later_s=later_s,
                )
            )
            if word == "finish":
                session.wait_for_saves(lambda: rest_s(left_s()))
        if wish == "stop" and self.signals.requeue is not None and not self._requeued:
            kept = word == "save" or (later_s == 0 and self._covered(session))
            word = "requeue" if kept else word
        return word, until

    def _exact_in(self, trainer: Trainer, session: WriterSession) -> tuple[float | None, Position]:
        """When, and at which boundary, to ask again for a state that resumes exactly."""
        batches, place = self._position
        timings = session.timings
        if place == _EPOCH_END:
            return 0.0, self._position
        last = compat.is_last_batch(trainer)
        if place == VALIDATED:
            return (timings.step_s, (batches, _EPOCH_END)) if last else (0.0, self._position)
        if place > 0:
            total = sum(trainer.num_val_batches)
            return timings.rest_of_validation_s(time.monotonic(), total), (batches, place + 1)
        missing = compat.batches_to_step(trainer)
        if missing:
            return missing * timings.step_s, (batches + 1, 0)
        if compat.validation_is_due(trainer):
            return timings.validation_s, (batches, 1)
        return (timings.step_s, (batches, _EPOCH_END)) if last else (0.0, self._position)

    @property
    def _taken(self) -> int:
        saves = self._session.saves if self._session is not None else None
        return saves.taken if saves is not None else 0

    def _covered(self, session: WriterSession) -> bool:
        """Whether another callback has just saved this very state."""
        return session.saves is not None and session.saves.taken > self._marked

    def _measure(self, session: WriterSession) -> None:
        saves = session.saves
        if saves is None:
            return
        now, taken = time.monotonic(), saves.taken - self._measured
        self._measured = saves.taken
        session.timings.batch_ended(now, taken, busy=saves.saver.pending() > 0)
        if self._pace is not None:
            self._pace.update(now, session.timings, taken=taken)

    def _died(self, told: ReceivedSignal) -> None:
        """A signal ends the process before its first batch."""
        self._preempted(told, checkpoint=None, step=None)

    def _preempted(self, told: ReceivedSignal, **facts: Any) -> None:
        seconds = time.monotonic() - told.at
        self._note("preempted", signal=told.name, seconds=seconds, grace=self._grace_s, **facts)

    def _note(self, event: str, **facts: Any) -> None:
        with contextlib.suppress(OSError):  # an event is no checkpoint
            note(self._root, event, **facts)
