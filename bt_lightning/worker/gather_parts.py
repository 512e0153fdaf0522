"""Thread of the worker that waits for the parts of other ranks, and commits when all are there.

Every rank's worker has one. Rank 0's commits; another one if rank 0's is dead. Nothing in training
waits for it: the arena of a part is free when the part is durable.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointExistsError,
    DirectoryFullError,
    PartsMissingError,
    TornSnapshotError,
)
from bt_lightning.sharding.gather_verdict import GatherVerdict, WholeGather, judge_parts, late
from bt_lightning.sharding.save_part import PartRecord
from bt_lightning.worker_messages import CommitFailed, Committed, Withdrawn

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.sharding.gather_verdict import VerdictCause
    from bt_lightning.sharding.save_part import SaveKey, SavePart
    from bt_lightning.worker.gather_place import GatherPlace
    from bt_lightning.worker_messages import WorkerConfig

_LEADER_GRACE_S: Final = 2.0
"""Seconds for which a whole gather waits for rank 0's worker, if that is dead."""
_TIMES: Final = 4
"""The deadline, in durations of the slowest of the last commits."""
_LAST: Final = 8
_LEAVING_S: Final = 15.0
"""Seconds for which parts of other ranks are waited for once the training process is gone."""
_LEAST_POLL_S: Final = 0.02
_MOST_POLL_S: Final = 0.1
_POLLS_IN_WAIT: Final = 20
_JUDGE_S: Final = 0.005
"""Seconds, for each rank, between two looks of another rank's worker than rank 0's at records."""
_MOST_JUDGE_S: Final = 1.0
_FEW_RANKS: Final = 64
"""Up to so many, every worker reads the records as they come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DurablePart:
    """A part of this rank that waits for those of the others."""

    number: int
    part: SavePart
    began: float
    """`time.time()` at the call that saved."""
    write_s: float = 0.0
    cpu_s: float = 0.0
    evicted: int = 0


class _OpenGather:
    def __init__(self, own: DurablePart) -> None:
        self.own = own
        self.since = time.monotonic()
        self.judged_at = 0.0
        self.whole_since: float | None = None
        self.checkpoint_id = ""
        self.trouble = ""
        """The last error of the place."""

    @property
    def waited_s(self) -> float:
        return time.monotonic() - self.since


class GatherThread:
    """The gathers that this rank has a durable part in.

    `done` is called for each outcome, and with None when `idle` may have changed; before that,
    `ended` with the verdict, and whether this worker made it a commit.
    """

    def __init__(
        self,
        place: GatherPlace,
        config: WorkerConfig,
        done: Callable[[Committed | CommitFailed | Withdrawn | None], None],
        ended: Callable[[DurablePart, GatherVerdict, bool], None],
    ) -> None:
        self._place = place
        self._leads = config.leads
        self._least_s = config.gather_s
        self._done = done
        self._ended = ended
        self._hosts = dict(enumerate(config.hosts))
        self._durations: deque[float] = deque(maxlen=_LAST)
        self._open: dict[int, _OpenGather] = {}
        self._hurried = False
        self._settled_at = math.inf
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def idle(self) -> bool:
        """Whether every part has the outcome of its save, or is not waited for any more."""
        with self._changed:
            return not any(self._waits(one) for one in self._open.values())

    def _waits(self, gather: _OpenGather) -> bool:
        """Whether the end of the process waits for this gather."""
        if self._place.streams:
            return True
        if not self._hurried and time.monotonic() - self._settled_at < _LEAVING_S:
            return True
        try:
            return self._place.writing(gather.own.part.key)
        except OSError:
            return False

    def hurry(self, *, parts: bool) -> None:
        """Without `parts`: the run has failed, and the ranks whose parts are missing may be dead.

        In a directory, what nobody writes is left to the next run, which commits what is whole. In
        a store it is given up after a while.
        """
        if not parts:
            self._hurried = True
            if self._place.streams:
                self._least_s = min(self._least_s, _LEAVING_S)

    def settle(self) -> None:
        """The training process is gone: wait for outcomes that are nowhere but in the store.

        In a directory, parts that a dead rank had handed over may still come, for a moment; then
        the next run ends what is open. It would cut off what is still being sent.
        """
        self._settled_at = time.monotonic()
        if self._place.streams:
            self.hurry(parts=False)
            with self._changed:
                self._changed.wait_for(lambda: not self._open)

    def has(self, number: int) -> bool:
        """Whether the save of this number waits for parts."""
        with self._changed:
            return number in self._open

    def number_of(self, key: SaveKey) -> int:
        """The number of the save that waits under this key; 0 if none does."""
        with self._changed:
            each = (number for number, one in self._open.items() if one.own.part.key == key)
            return next(each, 0)

    def wait_for(self, own: DurablePart) -> None:
        """Report the outcome of a save when it is known; returns at once. The commit thread's."""
        with self._changed:
            self._open[own.number] = _OpenGather(own)
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, daemon=True, name="bt_lightning gathers"
                )
                self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._open)
                each = [self._open[number] for number in sorted(self._open)]
            ended = [self._look(one) for one in each]
            if not any(ended):
                shortest = min(one.waited_s for one in each)
                pause = max(_LEAST_POLL_S, min(_MOST_POLL_S, shortest / _POLLS_IN_WAIT))
                with self._changed:
                    known = len(self._open)
                    self._changed.wait_for(lambda: len(self._open) != known, pause)  # noqa: B023

    def _look(self, gather: _OpenGather) -> bool:
        """Take a gather as far as it goes; whether it has ended."""
        committed_here = False
        try:
            verdict = self._place.outcome(gather.own.part.key)
            if verdict is None and self._is_due(gather):
                verdict, committed_here = self._judge(gather)
        except (CheckpointCorruptError, OSError) as error:  # may be cured by the next look
            gather.trouble, verdict = str(error), None
        own = gather.own
        if verdict is None and self._place.overdue(
            own.part.key, gather.waited_s, self.limit_s(own)
        ):
            verdict = self._give_up(gather)
        if verdict is None:
            return False
        self._end(gather, verdict, committed_here=committed_here)
        return True

    def _is_due(self, gather: _OpenGather) -> bool:
        """Whether to look at the records: rank 0's worker does always, as others wait for that.

        A thousand of them that list the same directory all the time would be a load for it, and
        each would read a thousand records: of many ranks the others look if rank 0's is dead.
        """
        now, part = time.monotonic(), gather.own.part
        if not self._leads:
            pause_s = min(_MOST_JUDGE_S, part.world_size * _JUDGE_S)
            if now - gather.judged_at < pause_s:
                return False
            if part.world_size > _FEW_RANKS and not self._place.leader_gone(part.key):
                return False
        gather.judged_at = now
        return True

    def _judge(self, gather: _OpenGather) -> tuple[GatherVerdict | None, bool]:
        """The verdict, and whether this worker made it a commit; None if it is open."""
        part = gather.own.part
        records = self._place.records(part.key)
        for rank, record in records.items():
            self._hosts[rank] = record.host
            if record.head is not None:
                gather.checkpoint_id = record.head.checkpoint_id
        found = judge_parts(records, part)
        if isinstance(found, GatherVerdict):
            return self._decide_against(part.key, found.why, found.cause), False
        if found is None:
            return None, False
        assert isinstance(found, WholeGather)
        gather.whole_since = gather.whole_since or time.monotonic()
        if not self._leads and (
            time.monotonic() - gather.whole_since < _LEADER_GRACE_S
            or not self._place.leader_gone(part.key)
        ):
            return None, False
        try:
            return self._place.commit(part.key, records), True
        except CheckpointExistsError as error:
            refused: CheckpointError = error
        except (CheckpointCorruptError, OSError):
            raise
        except CheckpointError as error:
            refused = error
        return self._decide_against(part.key, str(refused), "failed"), False

    def _decide_against(self, key: SaveKey, why: str, cause: VerdictCause) -> GatherVerdict | None:
        """Give up, unless another worker decided to commit: then the next look sees the outcome."""
        verdict = self._place.give_up(key, GatherVerdict(why=why, cause=cause))
        return verdict if verdict.manifest is None else None

    def limit_s(self, own: DurablePart) -> float:
        """Seconds that the other parts of a save are expected to take at most."""
        return max(self._least_s, _TIMES * max([own.write_s, *self._durations]))

    def _give_up(self, gather: _OpenGather) -> GatherVerdict:
        """The verdict at the deadline; this worker's own if the place does not take one."""
        part, waited_s = gather.own.part, gather.waited_s
        hosts, records = dict(self._hosts), dict[int, PartRecord]()
        try:
            records = dict(self._place.records(part.key))
            hosts |= self._place.hosts(part.key)
        except (CheckpointError, OSError) as error:
            gather.trouble = gather.trouble or str(error)
        why = late(records, hosts, part, waited_s).why
        if not records:  # at least this rank's is there
            why = f"the records of its parts could not be read within {waited_s:.0f} s"
        own = GatherVerdict(why=f"{why}: {gather.trouble}" if gather.trouble else why, cause="late")
        try:
            verdict = self._place.give_up(part.key, own)
            if verdict.manifest is not None:  # decided, and whoever did it is dead
                verdict = self._place.commit(part.key, records)
        except (CheckpointError, OSError):
            return own
        return verdict

    def _end(self, gather: _OpenGather, verdict: GatherVerdict, *, committed_here: bool) -> None:
        own = gather.own
        if verdict.manifest is not None:
            self._durations.append(own.write_s + gather.waited_s)
        self._ended(own, verdict, committed_here)
        with contextlib.suppress(CheckpointError, OSError):  # the next start deletes what is left
            self._place.end(own.part.key)
        self._done(
            self._event(gather, verdict)
        )  # before this counts as idle: the process may end then
        with self._changed:
            del self._open[own.number]
            self._changed.notify_all()
        self._done(None)

    def _event(
        self, gather: _OpenGather, verdict: GatherVerdict
    ) -> Committed | CommitFailed | Withdrawn:
        own = gather.own
        if verdict.manifest is not None:
            return Committed(
                number=own.number,
                manifest=verdict.manifest.to_bytes(),
                write_s=own.write_s,
                durable_s=time.time() - own.began,
                cpu_s=own.cpu_s,
                evicted=own.evicted,
                streamed=self._place.streams,
            )
        if verdict.cause == "dropped":
            return Withdrawn(own.number)
        name = gather.checkpoint_id or f"of save {own.part.key.number}"
        said = (
            f"the checkpoint {name} was not saved: {verdict.why}. What was committed is untouched"
        )
        error: CheckpointError = PartsMissingError(
            f"{said}: look at that rank's log, its host and its disk"
        )
        if verdict.cause == "torn":
            error = TornSnapshotError(said)
        if verdict.cause == "full":
            error = DirectoryFullError(
                f"{said}: free some space, keep fewer checkpoints (save_top_k), or raise the budget"
                " (BT_VOLUME_SIZE_GIB)"
            )
        return CommitFailed(number=own.number, error=error, evicted=own.evicted)
