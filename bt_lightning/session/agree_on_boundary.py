"""Agreement of the ranks on the boundary at which all save or stop, without a collective.

A thread on each rank runs the rules of `rank_protocol` through the process group's key-value store.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from typing import TYPE_CHECKING

from bt_lightning.errors import RankLostError
from bt_lightning.preemption import BOUNDARY_DECISIONS
from bt_lightning.rank_protocol import Get, Member, Position, Request, Set
from bt_lightning.session.rank_exchange import LONGEST_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.preemption import BoundaryDecision
    from bt_lightning.session.rank_exchange import RankExchange

log = logging.getLogger(__name__)

_POLL_S = 0.2
"""Between two looks at what this rank wants, and at the store where no bell rings."""
_SURE_S = 2.0
"""Between two looks at the store for a bell that did not arrive."""
_ANSWER_S = 0.005
_PROMISE_S = 0.5
"""Seconds of training ahead at which a rank proposes to save, so that it rarely has to wait."""
_JOIN_S = 60.0
_LAST_S = 30.0


class SingleRankAgreement:
    """The agreement of a run with one rank."""

    def __init__(self, request: Callable[[], Request | None]) -> None:
        self._request = request
        self._until: Position = (0, 0)

    def requested_at(
        self,
        position: Position,
        batches_ahead: int = 0,  # noqa: ARG002
        validation_batches: int = 0,  # noqa: ARG002
    ) -> Request | None:
        """What to do at this boundary; None for nothing."""
        request = self._request()
        return request if request is not None and position >= self._until else None

    def decision(
        self,
        _: Position,
        judge: Callable[[], tuple[BoundaryDecision, Position]],
        meanwhile: Callable[[], None] = lambda: None,  # noqa: ARG002
    ) -> BoundaryDecision:
        """The decision of `judge`; after `later` it is asked again at the position it returned."""
        decision, self._until = judge()
        return decision

    def done(self) -> None:
        """Note that the request is fulfilled."""
        self._until = (0, 0)

    def close(self) -> None:
        """Do nothing: there is no other rank."""


class RankAgreement:
    """One rank's part in the agreement; every rank creates it in the same order.

    `requested_at`, `decision`, `done` and `close` are called on the training thread. `request`
    returns what this rank wants (a save, a stop, or nothing); it is called on both threads.
    """

    def __init__(
        self, peers: RankExchange, name: str, request: Callable[[], Request | None]
    ) -> None:
        self._peers = peers
        self._member = Member(peers.rank, peers.ranks, name)
        self._request = request
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._batches = 0
        self._batch_s = 0.0
        self._batch_at: float | None = None
        self._failure: Exception | None = None
        self._thread = threading.Thread(
            target=self._run, daemon=True, name="bt_lightning agreement"
        )
        self._thread.start()

    def requested_at(
        self, position: Position, batches_ahead: int = 0, validation_batches: int = 0
    ) -> Request | None:
        """What to do at this boundary; None for nothing, which takes microseconds.

        `batches_ahead` is the number of batches that follow without another kind of boundary.
        `validation_batches` is the number of batches of a validation on this rank, 0 if unknown.

        Raises:
            RankLostError: a rank that is needed is gone or does not answer.
        """
        now, member = time.monotonic(), self._member
        with self._changed:
            if position[0] > self._batches:
                if self._batch_at is not None:
                    self._batch_s += (now - self._batch_at - self._batch_s) * 0.2
                self._batches, self._batch_at = position[0], now
            member.places = validation_batches
            ahead = min(batches_ahead, int(_PROMISE_S / self._batch_s)) if self._batch_s else 0
            action = member.reach(position, ahead, self._request())
            if action == "wait":
                self._changed.wait_for(lambda: member.goal is not None or member.lost, LONGEST_S)
                action = member.reach(position, ahead, self._request())
            if action in {"lost", "wait"}:
                raise self._lost()
            if action == "leave":
                log.warning("leaving without a save: %s", member.lost)
                return "stop"
            return member.asked if action == "act" else None

    def decision(
        self,
        _: Position,
        judge: Callable[[], tuple[BoundaryDecision, Position]],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> BoundaryDecision:
        """The decision of rank 0's `judge` for this boundary, on every rank.

        The other ranks call `meanwhile` again and again while they wait for it.

        Raises:
            RankLostError: rank 0 is gone.
        """
        peers, member = self._peers, self._member

        def left_s() -> float:
            meanwhile()
            return math.inf

        while member.goal is not None:
            key = member.decision_key
            if peers.rank == 0:
                decision, until = judge()
                until = member.shared(until) if decision == "later" else until
                peers.run(Set(key, f"{decision} {until[0]} {until[1]}"))
            else:
                peers.wait((key,), left_s)
                decision, until = _read(str(peers.run(Get(key))))
            if decision != "later":
                return decision
            with self._changed:
                if member.later(until):
                    return decision
        return "leave"

    def done(self) -> None:
        """Note that the request is fulfilled on this rank and training continues."""
        with self._changed:
            self._member.done()
        self._peers.bell.set()  # the next request may be there already

    def close(self) -> None:
        """End the thread, and tell the other ranks not to wait for this one; idempotent."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._peers.bell.set()
        self._thread.join(_JOIN_S)
        if self._failure is not None:
            return
        with contextlib.suppress(RuntimeError):  # the store ended with rank 0: no rank waits
            for op in self._member.over():
                self._peers.run(op)
            if awaited := self._member.awaited:
                until = time.monotonic() + _LAST_S
                self._peers.wait(awaited, lambda: until - time.monotonic())

    def _lost(self) -> RankLostError:
        why = self._member.lost or f"the other ranks did not answer within {LONGEST_S:.0f} s"
        error = RankLostError(why)
        error.__cause__ = self._failure
        return error

    # the thread

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                self._wait()
                self._look()
        except RuntimeError as error:  # of torch.distributed
            with self._changed:
                self._failure = error
                self._member.lost = "the key-value store of the process group is gone"
                self._changed.notify_all()

    def _wait(self) -> None:
        """Return when there may be something to do; asks the store nothing."""
        bell, since = self._peers.bell, time.monotonic()
        while not bell.wait(self._pause()):
            rests = self._member.asked is None and self._request() is None
            waited_s = time.monotonic() - since
            if not (rests and self._peers.has_bells and waited_s < _SURE_S):
                break
        bell.clear()

    def _pause(self) -> float:
        member = self._member
        return _POLL_S if member.asked is None or member.goal is not None else _ANSWER_S

    def _look(self) -> None:
        """Run the operations that the rules want next, until there is none."""
        while not self._closed.is_set():
            with self._changed:
                op = self._member.next_op(self._request())
            if op is None:
                return
            answer = self._peers.run(op)
            if isinstance(op, Set):
                self._peers.ring()
            with self._changed:
                self._member.receive(answer)
                self._changed.notify_all()


def _read(text: str) -> tuple[BoundaryDecision, Position]:
    decision, batches, within = text.split()
    return next(each for each in BOUNDARY_DECISIONS if each == decision), (
        int(batches),
        int(within),
    )
