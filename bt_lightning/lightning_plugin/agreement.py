"""How the ranks of a fit come to do one thing at one boundary, without a collective.

A boundary is a hook at which the state may be saved; its `Position` is the same on every rank, and
grows. Whoever wants something says so in the key-value store of the process group. A thread of
each rank sees it there, promises a position that its training thread will not pass by itself, and
says which; rank 0 takes the greatest, which no rank has passed. A training thread that comes to
its promise first waits for that word: it needs only the other *threads*, never another rank's
training, so nothing can wait in a circle.
"""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from bt_lightning.errors import SaveTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.preemption import Word

Wish = Literal["stop", "requeue", "save"]
_ORDERS: tuple[Wish, ...] = ("stop", "requeue")
"""By a signal, to whichever rank; saves at an interval are rank 0's alone."""
Position = tuple[int, int]
"""Batches trained in this fit, and where after the last one: 0 right after it, then counted."""

NEVER: Position = (1 << 60, 0)
_POLL_S = 0.2
_ANSWER_S = 0.005
_PROMISE_S = 0.5
"""The promise of a save lies so far ahead that training rarely comes to it before the word."""
_PEERS_S = 60.0
_WORD = timedelta(minutes=30)


class Alone:
    """The agreement of a single process."""

    def __init__(self, wish: Callable[[], Wish | None]) -> None:
        self._wish = wish
        self._until: Position = (0, 0)

    def due(self, position: Position, room: int = 0) -> Wish | None:  # noqa: ARG002
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


class Together:
    """The agreement of one rank among several; made by each of them in the same order.

    `due`, `word`, `done` and `close` are called on the training thread.
    """

    def __init__(
        self, store: Any, rank: int, ranks: int, name: str, wish: Callable[[], Wish | None]
    ) -> None:
        self._store, self._rank, self._ranks, self._name = store, rank, ranks, name
        self._wish = wish
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._at: Position = (0, 0)
        self._room = 0
        self._batch_s = 0.0
        self._batch_at: float | None = None
        self._round = 0
        self._asked: Wish | None = None
        self._promise: Position = NEVER
        self._goal: Position | None = None
        self._failure: Exception | None = None
        self._told: set[Wish] = set()
        self._thread = threading.Thread(
            target=self._run, daemon=True, name="bt_lightning agreement"
        )
        self._thread.start()

    def due(self, position: Position, room: int = 0) -> Wish | None:
        """What is to be done at this boundary; microseconds when nothing is.

        `room` says how many batches follow with nothing but batches between them.

        Raises:
            SaveTimeoutError: the other ranks do not answer.
        """
        now = time.monotonic()
        with self._changed:
            if position[0] > self._at[0]:
                if self._batch_at is not None:
                    self._batch_s += (now - self._batch_at - self._batch_s) * 0.2
                self._batch_at = now
            self._at, self._room = position, room
            if position < self._promise:
                return None
            known = self._changed.wait_for(lambda: self._goal is not None, _PEERS_S)
            if self._failure is not None or not known:
                msg = "the other ranks do not answer: the process group's key-value store is gone"
                raise SaveTimeoutError(msg) from self._failure
            assert self._goal is not None
            return self._asked if position >= self._goal else None

    def word(self, position: Position, judge: Callable[[], tuple[Word, Position]]) -> Word:
        """What rank 0's `judge` says of this boundary, on every rank.

        The words are kept by the position that they are for: a rank that has fewer boundaries on
        the way (uneven validation) reads at its next one what was said of those that it lacks.
        """
        while True:
            key = self._key("word", *map(str, self._goal or ()))
            if self._rank == 0:
                word, until = judge()
                self._store.set(key, f"{word} {until[0]} {until[1]}")
            else:
                self._store.wait([key], _WORD)
                said, batches, place = self._store.get(key).decode().split()
                word, until = said, (int(batches), int(place))
            if word != "later":
                return word
            with self._changed:
                self._goal = until
            if position < until:
                return word

    def done(self) -> None:
        """The wish is fulfilled on this rank; the next may be asked for."""
        with self._changed:
            self._end_round()

    def close(self) -> None:
        """The training is over: no other rank shall wait for this one."""
        self._closed.set()
        self._thread.join(_PEERS_S)
        if self._failure is not None:
            return
        try:
            self._store.set(self._key("at", str(self._rank)), _text(NEVER))
            if self._rank == 0 and self._goal is None:
                self._store.set(self._key("goal"), _text(NEVER))
        except RuntimeError:
            return  # the store went with another rank, which waits for nothing any more

    # the thread

    def _run(self) -> None:
        try:
            while not self._closed.wait(self._pause()):
                self._look()
        except RuntimeError as error:  # of torch.distributed: the store is gone
            with self._changed:
                self._failure = error
                self._goal = self._goal or NEVER
                self._changed.notify_all()

    def _pause(self) -> float:
        return _POLL_S if self._asked is None or self._goal is not None else _ANSWER_S

    def _look(self) -> None:
        if self._asked is None:
            self._ask()
        elif self._goal is None:
            self._answer()

    def _ask(self) -> None:
        """See whether something is wanted; if so, promise not to pass a position."""
        wish = self._wish()
        if self._rank != 0:
            if wish in _ORDERS and wish not in self._told:
                self._told.add(wish)
                self._store.set(self._told_key(wish), str(self._rank))
            if not self._store.check([self._key("asked")]):
                return
            wish = self._store.get(self._key("asked")).decode()
        elif wish in {None, "save"}:
            heard: list[Wish] = [kind for kind in _ORDERS if self._heard(kind)]
            wish = heard[0] if heard else wish
        if wish is None:
            return
        if self._rank == 0:
            self._store.set(self._key("asked"), wish)
        with self._changed:
            batches, place = self._at
            promised = (batches, place + 1)  # the next boundary, whatever it is
            if wish == "save" and self._batch_s:
                ahead = min(self._room, int(_PROMISE_S / self._batch_s))
                promised = max(promised, (batches + ahead, 0))
            self._promise, self._asked = promised, wish
        self._store.set(self._key("at", str(self._rank)), _text(promised))

    def _heard(self, kind: Wish) -> bool:
        """Rank 0: whether another rank was told by a signal."""
        if kind in self._told or not self._store.check([self._told_key(kind)]):
            return False
        self._told.add(kind)
        return True

    def _answer(self) -> None:
        if self._rank == 0:
            keys = [self._key("at", str(rank)) for rank in range(self._ranks)]
            if not self._store.check(keys):
                return
            goal = max(_position(self._store.get(key)) for key in keys)
            self._store.set(self._key("goal"), _text(goal))
        elif self._store.check([self._key("goal")]):
            goal = _position(self._store.get(self._key("goal")))
        else:
            return
        with self._changed:
            self._goal = goal
            self._changed.notify_all()

    def _end_round(self) -> None:
        self._round += 1
        self._asked = self._goal = None
        self._promise = NEVER

    def _key(self, *parts: str) -> str:
        return "/".join((self._name, str(self._round), *parts))

    def _told_key(self, wish: Wish) -> str:
        return f"{self._name}/told/{wish}"


def _text(position: Position) -> str:
    return f"{position[0]} {position[1]}"


def _position(text: bytes) -> Position:
    batches, place = text.decode().split()
    return int(batches), int(place)
