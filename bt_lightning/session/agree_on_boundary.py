"""The agreement of the ranks of a fit, without a collective: threads that drive `rounds`."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING

from bt_lightning.errors import RankLostError
from bt_lightning.preemption import WORDS
from bt_lightning.rank_protocol import Get, Member, Position, Request, Set
from bt_lightning.session.rank_exchange import LONGEST_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.preemption import Word
    from bt_lightning.session.rank_exchange import RankExchange

log = logging.getLogger(__name__)

_POLL_S = 0.2
_ANSWER_S = 0.005
_PROMISE_S = 0.5
"""The promise of a save lies so far ahead that training rarely comes to it before the word."""
_JOIN_S = 60.0
_LAST_S = 30.0


class SingleRankAgreement:
    """The agreement of a single process."""

    def __init__(self, wish: Callable[[], Request | None]) -> None:
        self._wish = wish
        self._until: Position = (0, 0)

    def due(self, position: Position, room: int = 0, places: int = 0) -> Request | None:  # noqa: ARG002
        """What is to be done at this boundary."""
        wish = self._wish()
        return wish if wish is not None and position >= self._until else None

    def word(self, _: Position, judge: Callable[[], tuple[Word, Position]]) -> Word:
        """What `judge` says; a `later` one is asked for again at the position that it names."""
        word, self._until = judge()
        return word

    def done(self) -> None:
        """The wish is fulfilled."""
        self._until = (0, 0)

    def close(self) -> None:
        """The training is over."""


class RankAgreement:
    """The agreement of one rank among several; made by each of them in the same order.

    `due`, `word`, `done` and `close` are called on the training thread.
    """

    def __init__(self, peers: RankExchange, name: str, wish: Callable[[], Request | None]) -> None:
        self._peers = peers
        self._member = Member(peers.rank, peers.ranks, name)
        self._wish = wish
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

    def due(self, position: Position, room: int = 0, places: int = 0) -> Request | None:
        """What is to be done at this boundary; microseconds when nothing is.

        `room` says how many batches follow with nothing but batches between them; `places` how
        many batches a validation of this rank has, 0 if that is not certain.

        Raises:
            RankLostError: a rank is gone that is needed, or does not answer.
        """
        now, member = time.monotonic(), self._member
        with self._changed:
            if position[0] > self._batches:
                if self._batch_at is not None:
                    self._batch_s += (now - self._batch_at - self._batch_s) * 0.2
                self._batches, self._batch_at = position[0], now
            member.places = places
            ahead = min(room, int(_PROMISE_S / self._batch_s)) if self._batch_s else 0
            what = member.reach(position, ahead, self._wish())
            if what == "wait":
                self._changed.wait_for(lambda: member.goal is not None or member.lost, LONGEST_S)
                what = member.reach(position, ahead, self._wish())
            if what in {"lost", "wait"}:
                raise self._lost()
            if what == "leave":
                log.warning("leaving without a save: %s", member.lost)
                return "stop"
            return member.asked if what == "act" else None

    def word(self, _: Position, judge: Callable[[], tuple[Word, Position]]) -> Word:
        """What rank 0's `judge` says of this boundary, on every rank.

        Raises:
            RankLostError: rank 0 is gone.
        """
        peers, member = self._peers, self._member
        while member.goal is not None:
            key = member.word_key
            if peers.rank == 0:
                word, until = judge()
                until = member.shared(until) if word == "later" else until
                peers.run(Set(key, f"{word} {until[0]} {until[1]}"))
            else:
                peers.wait((key,))
                word, until = _read(str(peers.run(Get(key))))
            if word != "later":
                return word
            with self._changed:
                if member.later(until):
                    return word
        return "leave"

    def done(self) -> None:
        """The wish is fulfilled on this rank, and training goes on: the next may be asked for."""
        with self._changed:
            self._member.done()

    def close(self) -> None:
        """The training is over: no other rank shall wait for this one; idempotent."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._thread.join(_JOIN_S)
        if self._failure is not None:
            return
        with contextlib.suppress(RuntimeError):  # the store went with rank 0: nobody waits
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
            while not self._closed.wait(self._pause()):
                self._look()
        except RuntimeError as error:  # of torch.distributed
            with self._changed:
                self._failure = error
                self._member.lost = "the key-value store of the process group is gone"
                self._changed.notify_all()

    def _pause(self) -> float:
        member = self._member
        return _POLL_S if member.asked is None or member.goal is not None else _ANSWER_S

    def _look(self) -> None:
        """All operations until the member rests."""
        while not self._closed.is_set():
            with self._changed:
                op = self._member.next_op(self._wish())
            if op is None:
                return
            answer = self._peers.run(op)
            with self._changed:
                self._member.receive(answer)
                self._changed.notify_all()


def _read(said: str) -> tuple[Word, Position]:
    word, batches, place = said.split()
    return next(known for known in WORDS if known == word), (int(batches), int(place))
