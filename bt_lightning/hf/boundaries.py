"""What is done when a step, with its log, evaluation and save, or an epoch of a Trainer is over.

There the state is that of one step, and can be resumed. Behind the last step of an epoch that is
so at the end of the epoch: a run that resumes there begins the next one, without the evaluation and
the hooks of its end.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Literal

from bt_lightning.hf.best_checkpoint import wait_until_committed
from bt_lightning.hf.other_callbacks import may_change_weights, reads_saves
from bt_lightning.localdir.event_log import began_facts, note
from bt_lightning.session.end_by_signal import EndBySignal
from bt_lightning.session.save_schedule import SaveSchedule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bt_lightning.hf.checkpoint_saves import CheckpointSaves
    from bt_lightning.rank_protocol import Request
    from bt_lightning.session.agree_on_boundary import RankAgreement, SingleRankAgreement
    from bt_lightning.session.running_session import RunningSession

_HOOKS: Final = ("on_step_begin", "on_epoch_begin", "on_epoch_end", "on_save", "on_train_end")
"""Those that run between a save and the next optimizer step."""
Reason = Literal["interval", "signal", "end"]


class Boundaries:
    """The boundaries of one training, on every rank.

    Args:
        trainer: the Trainer.
        run: its session.
        saves: how its state is saved.
    """

    def __init__(self, trainer: Any, run: RunningSession, saves: CheckpointSaves) -> None:
        self._trainer, self._run, self._saves = trainer, run, saves
        grace = run.options.grace
        grace_s = None if grace is None else grace.total_seconds()
        main = threading.current_thread() is threading.main_thread()
        self.signal = EndBySignal(run.peers, grace_s) if main else None
        self._writer = run.session.writer
        self._schedule: SaveSchedule | None = None
        self._interval: SingleRankAgreement | RankAgreement | None = None
        self._passed = self._measured = 0
        self._in_step = False
        self._copied_before: set[str] = set()
        """Hooks of other callbacks that may change weights."""
        self._is_read = False
        """Whether another callback looks for the folder of a save."""
        self._owed = False
        """Whether a save of an epoch's last step waits for the end of the epoch."""

    def begin(self) -> None:
        """Every rank: the state is restored, and training begins."""
        options = self._run.options
        self._copied_before = {h for h in _HOOKS if may_change_weights(self._trainer, h)}
        self._is_read = reads_saves(self._trainer)
        self._saves.prepare()
        if self._writer is not None:
            self._note("began", step=self._trainer.state.global_step, **began_facts())
            self._schedule = SaveSchedule(options, self._run.root)
        if options.interval is not None:
            self._interval = self._run.peers.agreement(self._is_due)

    def before_hook(self, hook: str) -> None:
        """Every rank, before other callbacks have this hook called."""
        saves = self._run.session.saves
        if saves is None:
            return
        if hook in self._copied_before:
            saves.saver.finish_copy()
        if hook == "on_save" and self._is_read:
            wait_until_committed(self._run)

    def step_ended(self) -> None:
        """Every rank: a step has ended; its log, evaluation and save are still to come."""
        self._in_step = True

    def epoch_ended(self) -> None:
        """Every rank: as `step_ended`, of an epoch."""
        self._in_step = False
        if self._owed:
            self._owed = False
            self._trainer.control.should_save = True

    def logged(self, logs: Mapping[str, Any]) -> None:
        """Every rank: the Trainer logs a row."""
        if self._writer is not None:
            numbers = {n: float(v) for n, v in logs.items() if isinstance(v, int | float)}
            epoch = numbers.pop("epoch", None)
            self._writer.metrics.add(self._trainer.state.global_step, numbers, epoch)

    def before_save(self) -> None:
        """Every rank, before the log, the evaluation and the save of a step or an epoch."""
        control = self._trainer.control
        if self._in_step and self._is_last_of_epoch and control.should_save:
            control.should_save, self._owed = False, True

    def after_save(self) -> None:
        """Every rank, after them: raise failures, save if it is time, end if it was told to.

        Raises:
            CheckpointError: what the worker could not do.
            SystemExit: SIGTERM came; the state of this step is saved.
        """
        self._run.session.boundary()
        self._measure()
        self._passed += 1
        self._saves.encode_early()
        told = self.signal is not None and self.signal.told()
        interval = self._interval
        due = interval.requested_at((self._passed, 0)) if interval is not None else None
        if self._in_step and self._is_last_of_epoch:
            return  # its end comes at once
        if told:
            self._leave()
        if interval is not None and due is not None:
            self._save("interim", "interval")
            interval.done()
        if not self._in_step and self._is_last_epoch and self._run.options.save_at_end:
            self._save("final", "end")

    def end(self, error: BaseException | None) -> None:
        """Every rank: training is over; wait until all is committed and published.

        Raises:
            SystemExit: SIGTERM came behind the last step; all is done.
            CheckpointError: as `RunningSession.end`.
        """
        signal, run, signalled = self.signal, self._run, False
        if self._interval is not None:
            self._interval.close()
        try:
            if signal is None:
                run.end(error)
            else:
                signalled = run.end(error, signal.left_s, lambda: signal.heard)
        finally:
            self._note_end(failed=error is not None and not isinstance(error, SystemExit))
            if signal is not None:
                signal.close()
        if signal is not None and signalled and error is None:
            raise signal.exit(writes=run.ranks.is_zero)

    def _note_end(self, *, failed: bool) -> None:
        if self._schedule is None or self._writer is None:
            return
        newest = self._writer.newest
        if self.signal is not None and self.signal.heard:
            self.signal.note(self._run.root, newest)
            return
        id_, step = (newest.checkpoint_id, newest.step) if newest is not None else (None, None)
        self._note("ended", failed=failed, checkpoint=id_, step=step)

    def _leave(self) -> None:
        assert self.signal is not None
        self._save("interim", "signal")
        raise self.signal.exit(writes=self._run.ranks.is_zero)

    def _save(self, kind: str, reason: Reason) -> None:
        """Save the state of this step, unless it was."""
        step = self._trainer.state.global_step
        if self._saves.newest != step:
            self._saves.save_interim(f"{kind}-{step}", reason)

    @property
    def _is_last_of_epoch(self) -> bool:
        epoch = self._trainer.state.epoch
        return bool(epoch) and float(epoch).is_integer()

    @property
    def _is_last_epoch(self) -> bool:
        state, control = self._trainer.state, self._trainer.control
        over = state.global_step >= state.max_steps or state.epoch >= state.num_train_epochs
        return bool(control.should_training_stop or over)

    def _is_due(self) -> Request | None:
        """Called on any thread."""
        due = self._schedule is not None and self._schedule.is_due(time.monotonic())
        return "save" if due else None

    def _measure(self) -> None:
        writer = self._writer
        if writer is None or writer.saves is None or self._schedule is None:
            return
        saves, now = writer.saves, time.monotonic()
        taken, self._measured = saves.taken - self._measured, saves.taken
        writer.timings.batch_ended(now, taken, busy=saves.saver.pending() > 0)
        self._schedule.update(now, writer.timings, taken=taken)

    def _note(self, event: str, **facts: Any) -> None:
        with contextlib.suppress(OSError):  # a lost event does no harm
            note(self._run.root, event, **facts)
