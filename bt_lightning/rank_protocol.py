"""The protocol by which all ranks of a fit act at the same boundary. Pure: no thread, I/O or clock.

A boundary is a hook at which the state may be saved; its `Position` is the same on every rank, and
grows. A rank that requests something (a stop, a requeue, a save) sets a key in the key-value store
of the process group. A thread of each rank sees the request, promises a position that its training
thread will not pass by itself, and publishes that promise. Rank 0 takes the greatest promise as the
goal, which no rank has passed. A training thread that reaches its promise first waits for the goal:
that needs only the other *threads*, never another rank's training, so there is no deadlock.

One operation of the store at a time: `next_op` returns the next one, `receive` takes its answer. So
the threads that drive a `Member` hold no rules of their own, and the tests can try every order of
the operations of all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

Request = Literal["stop", "requeue", "save"]
ORDERS: tuple[Request, ...] = ("stop", "requeue")
"""Requests that a signal makes, on any rank; the first has priority. Only rank 0 requests a
`save`, for the interval."""
Position = tuple[int, int]
"""Batches trained in this fit, and the number of the boundary after the last one, from 0."""

NEVER: Position = (1 << 60, 0)
VALIDATED = 1 << 40
"""Boundary number at the end of a validation; below it, validation batches are counted."""


class Set(NamedTuple):
    """Put a value under a key; no answer."""

    key: str
    value: str


class Check(NamedTuple):
    """Ask whether all of the keys exist: a bool. Never waits."""

    keys: tuple[str, ...]


class Get(NamedTuple):
    """Ask for the value of a key that exists: a str."""

    key: str


class Lost(NamedTuple):
    """Ask which rank is gone, and why: a str, empty if none is. Never waits."""


Op = Set | Check | Get | Lost
Answer = bool | str | None
_Phase = Literal[
    "rest", "listen", "hear", "ask", "read", "promise", "answer", "collect", "decide", "goal",
    "watch", "pause", "over",
]  # fmt: skip


@dataclass(slots=True)
class Member:
    """One rank's state. Its thread calls `next_op` and `receive`, its training thread the rest.

    The caller lets one thread use it at a time; the operations themselves need no lock.
    """

    rank: int
    ranks: int
    name: str
    """Prefix of all keys; the same on every rank."""
    places: int = 0
    """Number of batches in every validation of this rank; 0 if that is not certain."""
    round: int = 0
    asked: Request | None = None
    promise: Position = NEVER
    goal: Position | None = None
    lost: str = ""
    """Which rank is gone, and why."""
    at: Position = (0, 0)
    ahead: int = 0
    """Number of batches that a promise for a save may lie ahead."""
    _phase: _Phase = field(default="rest", repr=False)
    _own_request: Request | None = None
    _requested: Request | None = None
    _promises: tuple[str, ...] = ()
    _common_batches: int = 0

    # the training thread

    def reach(
        self, position: Position, ahead: int = 0, request: Request | None = None
    ) -> Literal["on", "wait", "act", "leave", "lost"]:
        """What to do at this boundary; after `wait`, call again once `goal` or `lost` is set.

        `lost`: another rank is gone, so the request cannot be agreed on. `leave`: the same,
        but this rank itself was told to end; or rank 0 has reached the end of its training.
        """
        self.at, self.ahead = position, ahead
        if self.goal is not None and position >= self.promise:
            return "act" if position >= self.goal else "on"
        if self.lost and (request == "stop" or position >= self.promise):
            return "leave" if request == "stop" else "lost"
        return "on" if position < self.promise else "wait"

    @property
    def decision_key(self) -> str:
        """The key under which rank 0 publishes its decision at `goal`.

        The key holds the goal: a rank that lacks boundaries on the way (uneven validation) reads
        their decisions at its next boundary.
        """
        assert self.goal is not None
        return self._key("word", *map(str, self.goal))

    def later(self, until: Position) -> bool:
        """Set `until` as the goal, as the decision was `later`; return whether it is ahead."""
        self.goal = until
        return self.at < until

    def shared(self, position: Position) -> Position:
        """Rank 0: `position`, or the first boundary from there on that every rank has."""
        return _shared(position, self._common_batches)

    def done(self) -> None:
        """Begin a new round: the request is fulfilled on this rank, and training goes on."""
        self.round += 1
        self.asked = self.goal = self._own_request = self._requested = None
        self.promise, self._promises = NEVER, ()
        self._phase = "rest"

    def over(self) -> list[Set]:
        """Operations that keep others from waiting for this rank, whose training has ended."""
        if self.rank != 0:
            return [Set(self._at_key(self.rank), _text(NEVER, 0)), Set(self._over(self.rank), "")]
        return [Set(self._key("goal"), _text(NEVER, 0))] if self.goal is None else []

    @property
    def awaited(self) -> tuple[str, ...]:
        """Rank 0, after `over`: keys to await before it ends, as the store may end with it."""
        if self.rank != 0 or (self.asked is None and self.round == 0):
            return ()  # there was never a request
        return tuple(self._over(rank) for rank in range(1, self.ranks))

    # the other thread

    def next_op(self, request: Request | None) -> Op | None:
        """The next operation; None to pause. `request` is this rank's own present request."""
        phase = self._phase
        if phase == "rest":
            return self._check_requests(request)
        if phase == "pause":
            waits = self.asked is not None and self.goal is None
            self._phase = "answer" if waits else ("watch" if self.asked is not None else "rest")
            return None
        if phase == "over":
            return None
        return self._operation()

    def receive(self, answer: Answer) -> None:
        """Take the answer to the operation of `next_op`."""
        receive: Callable[[Answer], None] = getattr(self, f"_receive_{self._phase}")
        receive(answer)

    def _check_requests(self, request: Request | None) -> Op:
        """No request is open: check for one, of this rank or another."""
        self._phase = "listen"
        if self.rank == 0:
            self._requested = request
            if request in ORDERS:
                self._phase = "ask"
        elif request in ORDERS and self._own_request not in ORDERS[: ORDERS.index(request) + 1]:
            self._own_request, self._phase = request, "rest"
            return Set(self._key("told"), request)
        return self._operation()

    def _operation(self) -> Op:
        key, zero = self._key, self.rank == 0
        operations: dict[_Phase, Callable[[], Op]] = {
            "listen": lambda: Check((key("told" if zero else "asked"),)),
            "hear": lambda: Get(key("told")),
            "ask": lambda: Set(key("asked"), str(self._requested)),
            "read": lambda: Get(key("asked")),
            "promise": lambda: Set(self._at_key(self.rank), _text(self.promise, self.places)),
            "answer": lambda: Check(self._others() if zero else (key("goal"),)),
            "collect": lambda: Get(self._others()[len(self._promises)]),
            "decide": lambda: Set(key("goal"), _text(self._greatest_promise(), 0)),
            "goal": lambda: Get(key("goal")),
            "watch": Lost,
        }
        return operations[self._phase]()

    def _receive_rest(self, _: Answer) -> None:
        """Nothing to do: rank 0 will see this rank's request."""

    def _receive_listen(self, there: Answer) -> None:
        if there:
            self._phase = "hear" if self.rank == 0 else "read"
        else:
            self._phase = "ask" if self._requested is not None else "watch"

    def _receive_hear(self, request: Answer) -> None:
        self._requested = _parse_request(request)
        self._phase = "ask"

    def _receive_ask(self, _: Answer) -> None:
        assert self._requested is not None
        self._promise(self._requested)

    def _receive_read(self, request: Answer) -> None:
        self._promise(_parse_request(request))

    def _promise(self, request: Request) -> None:
        batches, place = self.at
        self.promise = (batches, place + 1)  # the next boundary of any kind
        if request == "save":
            self.promise = max(self.promise, (batches + self.ahead, 0))
        self.asked, self._phase = request, "promise" if self.rank else "answer"

    def _receive_promise(self, _: Answer) -> None:
        self._phase = "answer"

    def _receive_answer(self, there: Answer) -> None:
        if not there:
            self._phase = "watch"
        else:
            self._phase = "collect" if self.rank == 0 else "goal"

    def _receive_collect(self, text: Answer) -> None:
        self._promises = (*self._promises, str(text))
        if len(self._promises) == self.ranks - 1:
            self._phase = "decide"

    def _receive_decide(self, _: Answer) -> None:
        self._set_goal(self._greatest_promise())

    def _receive_goal(self, text: Answer) -> None:
        self._set_goal(_position(str(text))[0])

    def _set_goal(self, goal: Position) -> None:
        self.goal, self._phase = goal, "watch"

    def _receive_watch(self, lost: Answer) -> None:
        self.lost = str(lost or "")
        self._phase = "over" if lost else "pause"

    def _greatest_promise(self) -> Position:
        """Rank 0: the greatest of all promises, moved to a boundary that every rank has."""
        promises = [_position(text) for text in self._promises]
        self._common_batches = min([self.places, *(places for _, places in promises)])
        return _shared(
            max([self.promise, *(position for position, _ in promises)]), self._common_batches
        )

    def _others(self) -> tuple[str, ...]:
        return tuple(self._at_key(rank) for rank in range(1, self.ranks))

    def _over(self, rank: int) -> str:
        return f"{self.name}/over/{rank}"

    def _at_key(self, rank: int) -> str:
        return self._key("at", str(rank))

    def _key(self, *parts: str) -> str:
        return "/".join((self.name, str(self.round), *parts))


@dataclass(slots=True)
class Await:
    """A training thread's wait for keys of other ranks, or until one is gone.

    It never holds the connection to the store, which the threads of `Member` need meanwhile.
    """

    keys: tuple[str, ...]
    there: bool = False
    lost: str = ""
    _checks: bool = True

    def next_op(self) -> Op:
        """The next operation: check the keys, then for a lost rank, in turn."""
        return Check(self.keys) if self._checks else Lost()

    def receive(self, answer: Answer) -> None:
        """Take the answer to the operation of `next_op`."""
        if self._checks:
            self.there = bool(answer)
        else:
            self.lost = str(answer or "")
        self._checks = not self._checks


def _shared(position: Position, places: int) -> Position:
    """`position`, or the end of its validation if not every rank has that batch.

    A rank that acted at a batch of its own would wait for others that wait for it in the same
    validation: to reduce a metric, or in a save of the user.
    """
    batches, place = position
    return (batches, VALIDATED) if places < place < VALIDATED else position


def _parse_request(text: Answer) -> Request:
    return next(request for request in (*ORDERS, "save") if request == text)


def _text(position: Position, places: int) -> str:
    return f"{position[0]} {position[1]} {places}"


def _position(text: str) -> tuple[Position, int]:
    batches, place, places = map(int, text.split())
    return (batches, place), places
