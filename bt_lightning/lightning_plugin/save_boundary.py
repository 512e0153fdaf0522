"""Interval saves, and saves and exits by a signal, at a boundary that all ranks agree on.

At a boundary the state is that of one step and can be resumed exactly. It is behind the hooks of
the module and of all callbacks, and behind the saves of `ModelCheckpoint`s, which are not repeated.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from bt_lightning.errors import DrainTimeoutError
from bt_lightning.lightning_plugin import compat, compat_signals
from bt_lightning.lightning_plugin.compat_hook_ends import (
    Boundary,
    behind_hooks,
    stop_acting_behind_hooks,
)
from bt_lightning.lightning_plugin.deferred_saves import forget_deferred, make_saves_behind_hooks
from bt_lightning.lightning_plugin.interim_saves import InterimSaves
from bt_lightning.lightning_plugin.lightning_or_pytorch_lightning import Checkpoint
from bt_lightning.lightning_plugin.next_exact_state import (
    EPOCH_END,
    next_exact_state,
    patience_s,
)
from bt_lightning.lightning_plugin.signals import ReceivedSignal, Signals
from bt_lightning.lightning_plugin.trainer_ranks import ranks_of
from bt_lightning.lightning_plugin.weight_change_watch import overrides
from bt_lightning.localdir.event_log import began_facts, note
from bt_lightning.preemption import ASSUMED_GRACE_S, BoundaryDecision, Situation, judge, rest_s
from bt_lightning.rank_protocol import VALIDATED, Position, Request
from bt_lightning.session.fit_ranks import FitRanks
from bt_lightning.session.save_schedule import SaveSchedule
from bt_lightning.session.writer_session import WriterSession

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lightning.pytorch import LightningModule, Trainer

    from bt_lightning.lightning_plugin.exact_resume import ExactResume
    from bt_lightning.session.agree_on_boundary import RankAgreement, SingleRankAgreement
    from bt_lightning.session.options import Options
    from bt_lightning.session.rank_session import RankSession, RankWriter

_OURS = "bt_lightning."
_SWAPPING = ("on_validation_start", "on_validation_epoch_start", "on_validation_model_eval")


class SaveBoundary(Checkpoint):
    """The boundaries of one fit, on every rank; the rank that writes also has the session."""

    def __init__(self, options: Options, root: Path, exact: ExactResume | None) -> None:
        self.signals = Signals()
        self._exact = exact
        self.interim = InterimSaves(root)
        self._options, self._root = options, root
        self._grace_s = options.grace.total_seconds() if options.grace is not None else None
        self._session: WriterSession | None = None
        self._poll: Callable[[], None] = lambda: None  # a worker that died is started again by it
        self._schedule: SaveSchedule | None = None
        self._agreement: SingleRankAgreement | RankAgreement | None = None
        self._position: Position = (0, 0)
        self._taken_before = self._taken_measured = 0
        self._swaps_weights = self._requeued = False
        self._validation_batches = 0
        self._fit_ranks: FitRanks | None = None
        self.ends_by_signal = False
        """Whether all ranks end by a signal; known after `end_fit`."""

    def listen(self, trainer: Trainer) -> None:
        """Called on every rank at setup: install the signal handlers."""
        on_death = self._note_early_end if trainer.is_global_zero else lambda _: None
        self.signals.listen(trainer, on_death)

    def connect_ranks(self, trainer: Trainer) -> None:
        """Called on every rank when the process group exists."""
        self._fit_ranks = FitRanks(ranks_of(trainer))

    def exchange(self, payload: bytes) -> list[bytes] | None:
        """As `FitRanks.exchange`, within the time that a signal leaves."""
        assert self._fit_ranks is not None
        return self._fit_ranks.exchange(payload, self.left_s)

    def fail(self, error: BaseException) -> None:
        """As `FitRanks.fail`."""
        if self._fit_ranks is not None:
            self._fit_ranks.fail(error)

    def begin_fit(self, trainer: Trainer, module: LightningModule, session: RankSession) -> None:
        """Called on every rank when the fit starts: append this to the Trainer's callbacks."""
        self._session, self._poll = session.writer, session.poll
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        owners = [o for o in (*callbacks, module) if not type(o).__module__.startswith(_OURS)]
        if self._fit_ranks is not None:
            self._fit_ranks.begin()
        self._swaps_weights = any(overrides(o, hook) for o in owners for hook in _SWAPPING)
        trainer.callbacks = [*callbacks, self]  # type: ignore[attr-defined]
        forget_deferred(trainer)
        behind_hooks(trainer, partial(self._behind_hooks, trainer))

    def finish_session(self, session: RankWriter) -> None:
        """Called on each rank that writes: end the session of a fit, within the time that is left.

        Raises:
            DrainTimeoutError: not everything is in the store, and no signal limited the time.
            DirectoryUnusableError, TornSnapshotError, UploadFailedError: as `WriterSession.poll`.
        """
        try:
            with self.signals.noting_sigterm():
                session.finish(self.left_s)
        except DrainTimeoutError as error:
            if self.signals.stop is None:
                raise
            warnings.warn(str(error), stacklevel=2)  # the exit status is that of the signal

    def end_fit(self, trainer: Trainer, session: RankWriter | None, *, failed: bool) -> None:
        """Called on every rank at the end of a fit: wait for rank 0, and write an event on rank 0.

        `session` has ended as well; it is None if this rank has none, or the fit did not begin.
        """
        stop_acting_behind_hooks(trainer)
        if self._agreement is not None:
            self._agreement.close()
        if self._fit_ranks is not None:
            if trainer.is_global_zero or not failed:  # a failed rank must not wait for the others
                self._end_fit(self._fit_ranks)
            self._fit_ranks.close()
        self._agreement = self._session = self._fit_ranks = None
        self.signals.close()
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        trainer.callbacks = [c for c in callbacks if c is not self]  # type: ignore[attr-defined]
        if not isinstance(session, WriterSession):
            return
        newest, stop = session.newest, self.signals.stop
        id_, step = (newest.checkpoint_id, newest.step) if newest is not None else (None, None)
        facts: dict[str, Any] = {"checkpoint": id_, "step": step}
        if stop is not None:
            self._note_preempted(stop, **facts)
        elif self._schedule is not None:  # training had begun
            self._note("ended", failed=failed, **facts)

    def _end_fit(self, fit_ranks: FitRanks) -> None:
        """Wait for rank 0, and learn whether all ranks end by a signal."""
        with self.signals.noting_sigterm():
            self.ends_by_signal = fit_ranks.end_fit(lambda: self.signals.stop is not None)
        if self.ends_by_signal and self.signals.stop is None:  # another rank received it
            self.signals.stop = ReceivedSignal(signal.SIGTERM, time.monotonic())

    def left_s(self) -> float:
        """Seconds that are left for the end of the run after a signal; infinity without one."""
        stop = self.signals.stop
        if stop is None or self._grace_s is None:
            return math.inf
        return rest_s(self._grace_s - (time.monotonic() - stop.at))

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.start()
        if self._session is not None:
            self._schedule = SaveSchedule(self._options, self._root)
            self._taken_before = self._taken_measured = self._taken
            self._note("began", step=trainer.global_step, **began_facts())
        self._validation_batches = compat.validation_batches(trainer)
        if self._fit_ranks is not None:
            self._agreement = self._fit_ranks.agreement(self._own_request)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_batches = compat.validation_batches(trainer)
        if self._session is not None:
            self._session.timings.validation(time.monotonic(), begins=True)

    def _behind_hooks(self, trainer: Trainer, boundary: Boundary) -> None:
        if self not in trainer.callbacks:  # type: ignore[attr-defined]
            return  # a search for a learning rate or a batch size
        make_saves_behind_hooks(trainer)
        batches, within = self._position
        if boundary == "batch":
            self._position = (batches + 1, 0)
            if self._session is not None:
                self._measure(self._session)
            self._at_boundary(trainer, compat.batches_without_boundary(trainer))
            return
        timings = self._session.timings if self._session is not None else None
        if boundary == "validation_batch":
            if timings is not None:
                timings.validation_batch_ended()
            self._position = (batches, within + 1)
        elif boundary == "validation":
            if timings is not None:
                timings.validation(time.monotonic(), begins=False)
            self._position = (batches, VALIDATED)
        else:
            self._position = (batches, EPOCH_END)
        self._at_boundary(trainer)
        if boundary == "epoch":
            self._save_end(trainer)

    def _save_end(self, trainer: Trainer) -> None:
        if self._options.save_at_end and compat.is_last_epoch(trainer):
            self.interim.save_end(trainer, self._session, self.left_s, self._poll)
        if self._session is not None:
            self._session.timings.exclude_until(time.monotonic())

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._agreement is not None:
            self._agreement.close()
            self._agreement = None

    def _own_request(self) -> Request | None:
        """What this rank wants to do at the next boundary; called on any thread."""
        if self.signals.stop is not None:
            return "stop"
        if self.signals.requeue is not None:
            return "requeue"
        due = self._schedule is not None and self._schedule.is_due(time.monotonic())
        return "save" if due else None

    def _at_boundary(self, trainer: Trainer, batches_ahead: int = 0) -> None:
        if self._agreement is None:
            return  # the sanity check before training
        position = self._position
        request = self._agreement.requested_at(position, batches_ahead, self._validation_batches)
        if request is not None:
            decide = partial(self._judge, trainer, request)
            decision = self._agreement.decision(position, decide, self._poll)
            if decision != "later":
                self._carry_out(trainer, request, decision)
        self._taken_before = self._taken

    def _carry_out(self, trainer: Trainer, request: Request, decision: BoundaryDecision) -> None:
        assert self._agreement is not None
        if request == "requeue" and self._requeued:  # SLURM signals every rank: requeue once
            self.signals.requeue = None
            self._agreement.done()
            return
        if decision in {"save", "requeue"}:
            self.interim.save(trainer, "interval" if request == "save" else "signal")
        requeue, self.signals.requeue = self.signals.requeue, None
        if self._schedule is not None:
            self._schedule.note_decision(time.monotonic(), saved=decision == "save")
        if request != "stop":
            self._agreement.done()
        if request == "requeue" or decision == "requeue":
            self._requeued = True
            compat_signals.requeue(trainer, requeue.signum if requeue else signal.SIGUSR1)
        if request == "stop":
            raise self.exit_by_signal(trainer)

    def exit_by_signal(self, trainer: Trainer) -> SystemExit:
        """The exception that ends this rank by the signal.

        Only rank 0, which ends last, has a non-zero exit status: launchers kill the other ranks
        when one fails, and would kill rank 0 while it still publishes.
        """
        if self._fit_ranks is not None:
            self._fit_ranks.agreed()
        stop = self.signals.stop or ReceivedSignal(signal.SIGTERM, time.monotonic())
        return compat_signals.ended_by_signal(
            trainer, 128 + stop.signum if trainer.is_global_zero else 0
        )

    def _judge(self, trainer: Trainer, request: Request) -> tuple[BoundaryDecision, Position]:
        """Called on rank 0: decide what to do at this boundary, by the measured times."""
        session = self._session
        assert session is not None
        if request == "stop" and self.signals.stop is None:  # another rank received it
            self.signals.stop = ReceivedSignal(signal.SIGTERM, time.monotonic())
        stop = self.signals.requeue if request == "requeue" else self.signals.stop
        grace_s = ASSUMED_GRACE_S if self._grace_s is None else self._grace_s

        def left_s() -> float:
            return grace_s - (time.monotonic() - stop.at if stop is not None else 0.0)

        inside = self._exact is None or self._exact.is_exact_inside_epoch(trainer)
        interval_s = self._schedule.interval_s if self._schedule is not None else None
        waits_s = patience_s(trainer, session.timings, request, left_s(), interval_s)
        later_s, until = next_exact_state(
            trainer, session.timings, self._position, 0.0 if inside else waits_s
        )
        decision: BoundaryDecision = "finish"
        while decision == "finish":
            session.process_events(0.0)
            in_progress = session.saves.saver.pending() if session.saves is not None else 0
            if request == "save":
                if later_s == 0 and not in_progress and not self._already_saved(session):
                    return "save", until
                alone = trainer.world_size == 1 and until > self._position
                batch = self._position[1] == 0 and until[0] > self._position[0]
                return ("later" if alone or batch else "leave"), until
            save_s = session.timings.save_s
            decision = judge(
                Situation(
                    left_s=left_s(),
                    covered=later_s == 0 and self._already_saved(session),
                    safe=not (self._swaps_weights and 0 < self._position[1] < VALIDATED),
                    under_way=in_progress,
                    behind_s=in_progress * (save_s or 0.0),
                    save_s=save_s,
                    later_s=later_s,
                )
            )
            if decision == "finish":
                session.wait_for_saves(lambda: rest_s(left_s()))
        if request == "stop" and self.signals.requeue is not None and not self._requeued:
            kept = decision == "save" or (later_s == 0 and self._already_saved(session))
            decision = "requeue" if kept else decision
        return decision, until

    @property
    def _taken(self) -> int:
        saves = self._session.saves if self._session is not None else None
        return saves.taken if saves is not None else 0

    def _already_saved(self, session: WriterSession) -> bool:
        """Whether another callback has just saved this state."""
        return session.saves is not None and session.saves.taken > self._taken_before

    def _measure(self, session: WriterSession) -> None:
        saves = session.saves
        if saves is None:
            return
        now, taken = time.monotonic(), saves.taken - self._taken_measured
        self._taken_measured = saves.taken
        session.timings.batch_ended(now, taken, busy=saves.saver.pending() > 0)
        if self._schedule is not None:
            self._schedule.update(now, session.timings, taken=taken)

    def _note_early_end(self, stop: ReceivedSignal) -> None:
        """Write the event of a signal that ends the process before its first batch."""
        self._note_preempted(stop, checkpoint=None, step=None)

    def _note_preempted(self, stop: ReceivedSignal, **facts: Any) -> None:
        seconds = time.monotonic() - stop.at
        self._note("preempted", signal=stop.name, seconds=seconds, grace=self._grace_s, **facts)

    def _note(self, event: str, **facts: Any) -> None:
        with contextlib.suppress(OSError):  # a lost event does no harm
            note(self._root, event, **facts)
