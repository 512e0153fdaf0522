"""How the ranks of a fit come to do one thing at one boundary. Pure: no thread, no store, no clock.

A boundary is a hook at which the state may be saved; its `Position` is the same on every rank, and
grows. Whoever wants something says so in the key-value store of the process group. A thread of
each rank sees it there, promises a position that its training thread will not pass by itself, and
says which; rank 0 takes the greatest, which no rank has passed. A training thread that comes to
its promise first waits for that word: it needs only the other *threads*, never another rank's
training, so nothing can wait in a circle.

One operation of the store at a time: `wants` says which comes next, `took` takes its answer. So
the threads that drive a `Member` hold no rule of their own, and the tests can try every order in
which the operations of all ranks may happen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

Request = Literal["stop", "requeue", "save"]
ORDERS: tuple[Request, ...] = ("stop", "requeue")
"""By a signal, to whichever rank; the first counts more. What the interval asks, rank 0 asks."""
Position = tuple[int, int]
"""Batches trained in this fit, and where after the last one: 0 right after it, then counted."""

NEVER: Position = (1 << 60, 0)
VALIDATED = 1 << 40
"""The place of the end of a validation; below it, batches of the validation are counted."""


class Set(NamedTuple):
    """Put a value under a key; no answer."""

    key: str
    value: str


class Check(NamedTuple):
    """Whether all of the keys are there: a bool. Never waits."""

    keys: tuple[str, ...]


class Get(NamedTuple):
    """The value of a key that is there: a str."""

    key: str


class Lost(NamedTuple):
    """Which rank is gone, and why: a str, empty while none is. Never waits."""


Op = Set | Check | Get | Lost
Answer = bool | str | None
_Phase = Literal[
    "rest", "listen", "hear", "ask", "read", "promise", "answer", "collect", "decide", "goal",
    "watch", "pause", "over",
]  # fmt: skip


@dataclass(slots=True)
class Member:
    """One rank's part. `wants` and `took` are its thread's, the rest its training thread's.

    Whoever drives it lets one of the two at it at a time, but for the operations themselves.
    """

    rank: int
    ranks: int
    name: str
    """Of all keys; the same on every rank."""
    places: int = 0
    """How many batches every validation of this rank has; 0 if that is not certain."""
    round: int = 0
    asked: Request | None = None
    promise: Position = NEVER
    goal: Position | None = None
    lost: str = ""
    """Which rank is gone, and why."""
    at: Position = (0, 0)
    ahead: int = 0
    """How many batches further a promise for a save may lie."""
    _phase: _Phase = field(default="rest", repr=False)
    _told: Request | None = None
    _next: Request | None = None
    _said: tuple[str, ...] = ()
    _common: int = 0

    # the training thread

    def reach(
        self, position: Position, ahead: int = 0, wish: Request | None = None
    ) -> Literal["on", "wait", "act", "leave", "lost"]:
        """What to do at this boundary; after `wait`, once `goal` or `lost` is known, `reach` again.

        `lost`: what is asked for cannot be agreed on any more. `leave`: nor can what this rank
        itself was told, which is to end; rank 0 may have come to the end of its training, too.
        """
        self.at, self.ahead = position, ahead
        if self.goal is not None and position >= self.promise:
            return "act" if position >= self.goal else "on"
        if self.lost and (wish == "stop" or position >= self.promise):
            return "leave" if wish == "stop" else "lost"
        return "on" if position < self.promise else "wait"

    @property
    def word_key(self) -> str:
        """Where rank 0 says what is done at `goal`.

        By the goal: a rank that has fewer boundaries on the way (uneven validation) reads at its
        next one what was said of those that it lacks.
        """
        assert self.goal is not None
        return self._key("word", *map(str, self.goal))

    def later(self, until: Position) -> bool:
        """The word is to ask again at `until`; whether that is past this boundary."""
        self.goal = until
        return self.at < until

    def shared(self, position: Position) -> Position:
        """Rank 0: `position`, or the first boundary from there on that every rank has."""
        return _shared(position, self._common)

    def done(self) -> None:
        """The wish is fulfilled on this rank, and training goes on: the next may be asked for."""
        self.round += 1
        self.asked = self.goal = self._told = self._next = None
        self.promise, self._said = NEVER, ()
        self._phase = "rest"

    def over(self) -> list[Set]:
        """Nobody shall wait for this rank: its training is over, and its thread has ended."""
        if self.rank != 0:
            return [Set(self._at_key(self.rank), _text(NEVER, 0)), Set(self._over(self.rank), "")]
        return [Set(self._key("goal"), _text(NEVER, 0))] if self.goal is None else []

    @property
    def awaited(self) -> tuple[str, ...]:
        """Rank 0, after `over`: keys to wait for before it leaves, for the store may go with it."""
        if self.rank != 0 or (self.asked is None and self.round == 0):
            return ()  # nobody was ever asked
        return tuple(self._over(rank) for rank in range(1, self.ranks))

    # the other thread

    def wants(self, wish: Request | None) -> Op | None:
        """The next operation; None to rest a little. `wish` is what this rank itself wants now."""
        phase = self._phase
        if phase == "rest":
            return self._rests(wish)
        if phase == "pause":
            waits = self.asked is not None and self.goal is None
            self._phase = "answer" if waits else ("watch" if self.asked is not None else "rest")
            return None
        if phase == "over":
            return None
        return self._operation()

    def took(self, answer: Answer) -> None:
        """The answer to what was wanted."""
        took: Callable[[Answer], None] = getattr(self, f"_took_{self._phase}")
        took(answer)

    def _rests(self, wish: Request | None) -> Op:
        """Nothing is asked for: is something wanted, here or elsewhere?"""
        self._phase = "listen"
        if self.rank == 0:
            self._next = wish
            if wish in ORDERS:
                self._phase = "ask"
        elif wish in ORDERS and self._told not in ORDERS[: ORDERS.index(wish) + 1]:
            self._told, self._phase = wish, "rest"
            return Set(self._key("told"), wish)
        return self._operation()

    def _operation(self) -> Op:
        key, zero = self._key, self.rank == 0
        operations: dict[_Phase, Callable[[], Op]] = {
            "listen": lambda: Check((key("told" if zero else "asked"),)),
            "hear": lambda: Get(key("told")),
            "ask": lambda: Set(key("asked"), str(self._next)),
            "read": lambda: Get(key("asked")),
            "promise": lambda: Set(self._at_key(self.rank), _text(self.promise, self.places)),
            "answer": lambda: Check(self._others() if zero else (key("goal"),)),
            "collect": lambda: Get(self._others()[len(self._said)]),
            "decide": lambda: Set(key("goal"), _text(self._greatest(), 0)),
            "goal": lambda: Get(key("goal")),
            "watch": Lost,
        }
        return operations[self._phase]()

    def _took_rest(self, _: Answer) -> None:
        """Rank 0 will see what this rank was told."""

    def _took_listen(self, there: Answer) -> None:
        if there:
            self._phase = "hear" if self.rank == 0 else "read"
        else:
            self._phase = "ask" if self._next is not None else "watch"

    def _took_hear(self, wish: Answer) -> None:
        self._next = _wish(wish)
        self._phase = "ask"

    def _took_ask(self, _: Answer) -> None:
        assert self._next is not None
        self._promise(self._next)

    def _took_read(self, wish: Answer) -> None:
        self._promise(_wish(wish))

    def _promise(self, wish: Request) -> None:
        batches, place = self.at
        self.promise = (batches, place + 1)  # the next boundary, whatever it is
        if wish == "save":
            self.promise = max(self.promise, (batches + self.ahead, 0))
        self.asked, self._phase = wish, "promise" if self.rank else "answer"

    def _took_promise(self, _: Answer) -> None:
        self._phase = "answer"

    def _took_answer(self, there: Answer) -> None:
        if not there:
            self._phase = "watch"
        else:
            self._phase = "collect" if self.rank == 0 else "goal"

    def _took_collect(self, said: Answer) -> None:
        self._said = (*self._said, str(said))
        if len(self._said) == self.ranks - 1:
            self._phase = "decide"

    def _took_decide(self, _: Answer) -> None:
        self._known(self._greatest())

    def _took_goal(self, said: Answer) -> None:
        self._known(_position(str(said))[0])

    def _known(self, goal: Position) -> None:
        self.goal, self._phase = goal, "watch"

    def _took_watch(self, lost: Answer) -> None:
        self.lost = str(lost or "")
        self._phase = "over" if lost else "pause"

    def _greatest(self) -> Position:
        """Rank 0: of all promises, if every rank has that boundary."""
        said = [_position(text) for text in self._said]
        self._common = min([self.places, *(places for _, places in said)])
        return _shared(max([self.promise, *(position for position, _ in said)]), self._common)

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
    """The wait of a training thread for keys of other ranks, or for the news that one is gone.

    It never holds the connection to the store: what the threads of `Member` need goes on meanwhile.
    """

    keys: tuple[str, ...]
    there: bool = False
    lost: str = ""
    _checks: bool = True

    def wants(self) -> Op:
        """The next operation."""
        return Check(self.keys) if self._checks else Lost()

    def took(self, answer: Answer) -> None:
        """The answer to what was wanted."""
        if self._checks:
            self.there = bool(answer)
        else:
            self.lost = str(answer or "")
        self._checks = not self._checks


def _shared(position: Position, places: int) -> Position:
    """`position`, or the end of the validation in which not every rank has it.

    A rank that acted at a batch of its own would wait for others, which in the same validation
    wait for it: to reduce a metric, or in a save of the user's.
    """
    batches, place = position
    return (batches, VALIDATED) if places < place < VALIDATED else position


def _wish(text: Answer) -> Request:
    return next(wish for wish in (*ORDERS, "save") if wish == text)


def _text(position: Position, places: int) -> str:
    return f"{position[0]} {position[1]} {places}"


def _position(text: str) -> tuple[Position, int]:
    batches, place, places = map(int, text.split())
    return (batches, place), places
