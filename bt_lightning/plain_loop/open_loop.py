"""A loop between the start and the end of its `Checkpointer`, on one rank."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from bt_lightning.errors import DrainTimeoutError
from bt_lightning.plain_loop.loop_retention import LoopRetention
from bt_lightning.plain_loop.sharded_loop import ShardedLoop, lies_on_ranks
from bt_lightning.session.base_of_run import BaseOfRun
from bt_lightning.session.checkpoint_paths import DEFAULT_ROOT, absolute_root
from bt_lightning.session.end_by_signal import EndBySignal
from bt_lightning.session.running_session import RunningSession
from bt_lightning.worker.worker_handle import unlimited

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bt_lightning.plain_loop.loop_state import LoopState
    from bt_lightning.retention import RetentionPolicy
    from bt_lightning.session.options import Options

PREFIX = "checkpoint-"


class OpenLoop:
    """Its session, with what keeps its checkpoints and what ends it.

    Args:
        options: merged with the environment.
        policy: which checkpoints to keep; None: all.
        hears_sigterm: whether `ended_step` says that the loop must leave.

    Raises:
        CheckpointError: as `RunningSession`.
    """

    def __init__(
        self, options: Options, policy: RetentionPolicy | None, *, hears_sigterm: bool
    ) -> None:
        root = absolute_root(options.dir or DEFAULT_ROOT)
        self.run = RunningSession(options, root, loads_whole=True)
        self.base = BaseOfRun(options.save_frozen)
        grace, self._signal_end = options.grace, None
        if hears_sigterm and grace is not None:
            self._signal_end = EndBySignal(self.run.peers, grace.total_seconds())
        self._policy = policy
        self._parts: ShardedLoop | None = None
        self._retention: LoopRetention | None = None

    def parts_of(self, state: LoopState) -> ShardedLoop | None:
        """Every rank: what saves and loads a state whose tensors lie on all ranks, if they do.

        Raises:
            InvalidSettingError: several models do, or the nodes have directories of their own.
        """
        if self._parts is None and lies_on_ranks(state):
            self._parts = ShardedLoop(self.run)
        return self._parts

    def begin(self, state: LoopState) -> None:
        """Every rank: the state is restored; from now on saves are snapshots. Idempotent."""
        optimizers = list(state.optimizers.values())
        self.run.begin(lambda: optimizers, state.device)

    def look(self, state: LoopState) -> None:
        """Every rank, between saves: let the ranks tell of what lies on all of them."""
        if self._parts is not None:
            self._parts.look(state)

    def exchange(self, payload: bytes) -> list[bytes] | None:
        """As `FitRanks.exchange`, within the time that a signal leaves."""
        return self.run.peers.exchange(payload, self._left_s)

    def ended_step(self) -> bool:
        """Every rank: whether to save and leave; as `EndBySignal.told`."""
        self.run.session.boundary()
        self.base.look(self.run.session.saves)
        if self._parts is not None:
            self._parts.look()
        return self._signal_end is not None and self._signal_end.told()

    def keep(self, checkpoint_id: str, step: int, metrics: Mapping[str, float]) -> None:
        """Rank that writes, after a save: ask for the removal of what the policy does not keep."""
        if self._policy is None:
            return
        if self._retention is None:
            there = [one for one in self.run.checkpoints() if _is_of_a_loop(one.checkpoint_id)]
            self._retention = LoopRetention(self._policy, there)
        for gone in self._retention.saved(checkpoint_id, step, metrics):
            self.run.session.remove(self.run.root / gone, self.run.root)

    def end(self, error: BaseException | None) -> None:
        """Every rank: the loop is over, well or by `error`.

        Raises:
            DirectoryUnusableError, UploadFailedError, DrainTimeoutError: as `RunningSession.end`.
            SystemExit: the loop was told to end, and all is done.
        """
        signal_end, writer = self._signal_end, self.run.session.writer
        told = signal_end is not None and signal_end.agreed
        try:
            self.run.end(error, self._left_s, lambda: told)
        except DrainTimeoutError as late:
            if not told:
                raise
            warnings.warn(str(late), stacklevel=2)  # the exit status is that of the signal
        finally:
            if self._parts is not None:
                self._parts.close()
            if signal_end is not None:
                signal_end.close()
        if signal_end is None or not told or error is not None:
            return
        if writer is not None:
            signal_end.note(self.run.root, writer.newest)
        raise signal_end.exit(writes=writer is not None)

    @property
    def _left_s(self) -> Callable[[], float]:
        return unlimited if self._signal_end is None else self._signal_end.left_s


def _is_of_a_loop(checkpoint_id: str) -> bool:
    step = checkpoint_id.removeprefix(PREFIX)
    return step != checkpoint_id and step.isdecimal()
