"""Every order in which two and three ranks may agree, save, be told, fail and die: none is wrong.

The world around `rank_protocol` is modelled: key-value store, collectives, the training of each
rank as a list of what it does. The rules are those that training runs: the very `Member` and
`Await`. A state is everything that can still make a difference, so each is looked at once.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import pytest

from bt_lightning.rank_protocol import NEVER, VALIDATED, Await, Check, Get, Member, Op, Set

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

FIELDS = tuple(field.name for field in dataclasses.fields(Member))
_values = attrgetter(*FIELDS)
EPOCH_END = VALIDATED + 1


class Rank(NamedTuple):
    """One rank; `member` is the values of its `Member`."""

    member: tuple[Any, ...]
    todo: tuple[tuple[Any, ...], ...]
    """What its training thread still does."""
    told: str | None = None
    end: str = ""
    waits: str = ""
    """What its training thread waits for."""
    turn: int = 0
    arrived: int = 0
    """Collectives that it has entered."""
    answer: Any = ()
    """What its other thread was answered, and has not yet taken."""


class World(NamedTuple):
    ranks: tuple[Rank, ...]
    store: frozenset[tuple[str, str]]
    entered: tuple[str, ...] = ()
    """The collectives that any rank has entered, by what each is for."""
    acted: tuple[tuple[Any, ...], ...] = ()
    """By round: what was done."""
    signals: tuple[str, ...] = ()
    """That may still come."""
    deaths: int = 0
    """So many ranks may still die."""
    raises: int = 0
    """So many of the user's hooks may still raise."""


class WrongError(Exception):
    """A state that must not be, with the way there."""


def wrong(what: str) -> NoReturn:
    raise WrongError(what)


class StoreGoneError(Exception):
    """Rank 0 has ended, and the store with it."""


@dataclasses.dataclass(frozen=True)
class Rules:
    programs: tuple[tuple[tuple[Any, ...], ...], ...]
    signals: tuple[str, ...] = ()
    deaths: int = 0
    raises: int = 0
    places: tuple[int, ...] = ()
    agent: bool = False
    """The store outlives rank 0, as that of torchrun does."""
    deaf_collectives: bool = False
    """A collective with a rank that is gone never ends, as with NCCL."""
    blocking: bool = False
    """A wait for keys holds the connection that the other thread needs."""
    words: tuple[str, ...] = ("save", "leave", "later")
    split: bool = False
    """The training thread may run between an operation of the other thread and its answer."""


def boundary(batches: int, place: int = 0) -> tuple[Any, ...]:
    return ("boundary", (batches, place))


SYNC, SAVE = ("collective", "gradients"), ("save", "user")


def _member(values: tuple[Any, ...]) -> Member:
    made = object.__new__(Member)
    for name, value in zip(FIELDS, values, strict=True):
        object.__setattr__(made, name, value)
    return made


class Model:
    """All that may happen next in a `World`."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.count = len(rules.programs)

    def begin(self) -> World:
        rules = self.rules
        ranks = []
        for rank, program in enumerate(rules.programs):
            places = rules.places[rank] if rules.places else 2
            member = Member(rank, self.count, "a", places)
            made = Rank(_values(member), (*program, ("end", "finished")))
            ranks.append(_ONE.setdefault(made, made))
        nothing: frozenset[tuple[str, str]] = frozenset()
        return World(
            tuple(ranks),
            _ONE.setdefault(nothing, nothing),
            signals=rules.signals,
            deaths=rules.deaths,
            raises=rules.raises,
        )

    def nexts(self, world: World) -> Iterator[World]:
        for number, rank in enumerate(world.ranks):
            if rank.end:
                continue
            yield from self._outside(world, number, rank)
            yield from self._trains(world, number, rank)
            ended = rank.todo[0][0] == "end" and rank.waits == "keys"
            held = self.rules.blocking and rank.waits == "keys"
            if rank.answer or not (ended or held):
                yield from self._looks(world, number, rank)

    # what comes from outside

    def _outside(self, world: World, number: int, rank: Rank) -> Iterator[World]:
        for kind in dict.fromkeys(world.signals):
            left = list(world.signals)
            left.remove(kind)
            if rank.told is None or (rank.told == "requeue" and kind == "stop"):
                yield _with(world, number, rank._replace(told=kind), signals=tuple(left))
        if world.deaths:
            died = rank._replace(end="died", waits="", todo=(), answer=())
            yield _with(world, number, died, deaths=world.deaths - 1)

    # the store

    def _store_is_gone(self, world: World) -> bool:
        return bool(world.ranks[0].end) and not self.rules.agent

    def _answer(self, world: World, number: int, op: Op) -> tuple[Any, frozenset[Any]]:
        if self._store_is_gone(world):
            raise StoreGoneError
        found = dict(world.store)
        if isinstance(op, Set):
            if op.value.startswith(str(NEVER[0])) or op.key.endswith("/told"):
                found.pop(op.key, None)
            if op.key in found and op.key != "gone" and found[op.key] != op.value:
                wrong(f"{op.key} was {found[op.key]}, is {op.value}")
            return None, frozenset({**found, op.key: op.value}.items())
        if isinstance(op, Check):
            return all(key in found for key in op.keys), world.store
        if isinstance(op, Get):
            if op.key not in found:
                wrong(f"{op.key} is read and not there: the thread hangs")
            return found[op.key], world.store
        # the line between rank 0 and each other rank breaks when one of the two dies
        ends = range(1, self.count) if number == 0 else (0,)
        if "gone" not in found and any(world.ranks[other].end == "died" for other in ends):
            found["gone"] = "died"
        return found.get("gone", ""), frozenset(found.items())

    # the thread of a Member

    def _looks(self, world: World, number: int, rank: Rank) -> Iterator[World]:
        if rank.answer:
            member = _member(rank.member)
            member.receive(rank.answer[0])
            yield _with(world, number, rank._replace(member=_values(member), answer=()))
            return
        member = _member(rank.member)
        op = member.next_op(rank.told) or member.next_op(rank.told)
        if op is None:
            return
        try:
            answer, store = self._answer(world, number, op)
        except StoreGoneError:
            member = _member(rank.member)
            if not member.lost:
                member.lost, member._phase = "store", "over"
                yield _with(world, number, rank._replace(member=_values(member)))
            return
        if self.rules.split:
            again = rank._replace(member=_values(member), answer=(answer,))
        else:
            member.receive(answer)
            if member._phase == "watch" and not self._somebody_may_be_lost(world):
                member.receive("")
            if member._phase == "pause":
                member.next_op(None)  # one rest is as all others
            again = rank._replace(member=_values(member))
        yield _with(world, number, again, store=store)

    def _somebody_may_be_lost(self, world: World) -> bool:
        ends = {rank.end for rank in world.ranks}
        leaves = any(rank.todo and rank.todo[0][0] == "leave" for rank in world.ranks)
        return bool(world.deaths or world.raises or leaves or ends & {"died", "error"})

    # the training thread

    def _trains(self, world: World, number: int, rank: Rank) -> Iterator[World]:
        try:
            yield from getattr(self, f"_{rank.todo[0][0]}")(world, number, rank)
        except StoreGoneError:
            yield self._raised(world, number, rank)

    def _raised(self, world: World, number: int, rank: Rank) -> World:
        todo = (("leave", "gone"), ("leave", "over"))
        return _with(world, number, rank._replace(todo=todo, waits=""))

    def _leave(self, world: World, number: int, rank: Rank) -> Iterator[World]:
        """An exception ends the fit of this rank."""
        if rank.answer:
            return  # its thread is waited for
        store = world.store
        try:
            if rank.todo[0][1] == "gone":
                _, store = self._answer(world, number, Set("gone", "raised"))
                yield _with(world, number, rank._replace(todo=rank.todo[1:]), store=store)
                return
            for op in _member(rank.member).over():
                _, store = self._answer(world._replace(store=store), number, op)
        except StoreGoneError:
            pass
        yield _with(world, number, rank._replace(end="error", todo=(), answer=()), store=store)

    def _end(self, world: World, number: int, rank: Rank) -> Iterator[World]:
        """The training is over, by itself or by a signal."""
        if rank.answer:
            return  # its thread is waited for
        how, member = rank.todo[0][1], _member(rank.member)
        gone = rank._replace(end=how, todo=(), waits="", answer=())
        store = world.store
        if rank.waits != "keys":
            try:
                for op in member.over():
                    _, store = self._answer(world._replace(store=store), number, op)
            except StoreGoneError:
                yield _with(world, number, gone)
                return
            if not member.awaited:
                yield _with(world, number, gone, store=store)
                return
            # its thread has ended, and no other wait of it is to come
            yield _with(world, number, rank._replace(waits="keys", answer=()), store=store)
            return
        for there in self._awaits(world, number, rank, member.awaited):
            # who waited in vain leaves as well
            lost = isinstance(there, World)
            yield _with(world, number, gone, store=there.store if lost else store)

    def _boundary(self, world: World, number: int, rank: Rank) -> Iterator[World]:
        member = _member(rank.member)
        what = member.reach(rank.todo[0][1], 0, rank.told)
        if what == "on":
            again = rank._replace(member=_values(member), todo=rank.todo[1:], waits="")
            yield _with(world, number, again)
        elif what == "act":
            todo = (("word", member.asked), *rank.todo[1:])
            yield _with(world, number, rank._replace(member=_values(member), todo=todo, waits=""))
        elif what == "leave":
            yield _with(world, number, rank._replace(todo=(("end", "left"),), waits=""))
        elif what == "lost":
            yield self._raised(world, number, rank)
        else:
            yield _with(world, number, rank._replace(member=_values(member), waits="goal"))

    def _word(self, world: World, number: int, rank: Rank) -> Iterator[World]:
        member = _member(rank.member)
        if number:
            for there in self._awaits(world, number, rank, (member.decision_key,)):
                if isinstance(there, World):
                    yield there
                else:
                    said = dict(world.store)[member.decision_key].split()
                    until = (int(said[1]), int(said[2]))
                    yield self._heard(world, number, rank, said[0], until, world.store)
            return
        for word in self.rules.words:
            until = member.at
            if word == "later":
                ahead = [does[1] for does in rank.todo[1:] if does[0] == "boundary"]
                if not ahead:
                    continue
                until = member.shared(ahead[0])
            said = f"{word} {until[0]} {until[1]}"
            _, store = self._answer(world, number, Set(member.decision_key, said))
            yield self._heard(world, number, rank, word, until, store)

    def _heard(self, world, number, rank, word, until, store) -> World:
        member = _member(rank.member)
        wish, rest = member.asked, rank.todo[1:]
        if word == "later":
            if not member.later(until):
                rest = (rank.todo[0], *rest)
            again = rank._replace(member=_values(member), todo=rest, waits="")
            return _with(world, number, again, store=store)
        did = (wish, word, member.at[0])
        acted = world.acted
        if len(acted) == member.round:
            acted = (*acted, did)
        elif acted[member.round] != did:
            wrong(f"round {member.round}: {acted[member.round]} and {did}")
        todo: list[tuple[Any, ...]] = [("done", wish)]
        if wish == "requeue":
            todo = [("save", "requeue"), *todo]
        if word == "save":
            todo = [("save", "interim"), *todo]
        again = rank._replace(todo=(*todo, *rest), waits="")
        return _with(world, number, again, store=store, acted=acted)

    def _done(self, world: World, number: int, rank: Rank) -> Iterator[World]:
        member = _member(rank.member)
        told = None if rank.todo[0][1] == rank.told else rank.told
        if rank.todo[0][1] == "stop":
            yield _with(world, number, rank._replace(todo=(("end", "stopped"),)))
            return
        member.done()
        again = rank._replace(member=_values(member), todo=rank.todo[1:], told=told)
        yield _with(world, number, again)

    def _save(self, world: World, number: int, rank: Rank) -> Iterator[World]:
        """What `trainer.save_checkpoint` does on every rank."""
        why = rank.todo[0][1]
        if world.raises and why == "user":
            yield self._raised(world._replace(raises=world.raises - 1), number, rank)
        todo = (("states", why), ("collective", f"save {why}"), *rank.todo[1:])
        yield _with(world, number, rank._replace(todo=todo))

    def _states(self, world: World, number: int, rank: Rank) -> Iterator[World]:
        turn, mine = rank.turn, f"{rank.todo[0][1]} {_member(rank.member).at[0]}"
        after = rank._replace(todo=rank.todo[1:], turn=turn + 1, waits="")
        if number:
            _, store = self._answer(world, number, Set(f"state/{turn}/{number}", mine))
            yield _with(world, number, after, store=store)
            return
        keys = tuple(f"state/{turn}/{other}" for other in range(1, self.count))
        for there in self._awaits(world, number, rank, keys):
            if isinstance(there, World):
                yield there
            else:
                found = dict(world.store)
                if any(found[key] != mine for key in keys):
                    wrong(f"a save of {mine} with {[found[key] for key in keys]}")
                left = frozenset((key, value) for key, value in world.store if key not in keys)
                yield _with(world, number, after, store=left)

    def _awaits(
        self, world: World, number: int, rank: Rank, keys: tuple[str, ...]
    ) -> Iterator[World | bool]:
        """One look of an `Await`, which is as all others: only what it finds makes a difference."""
        wait = Await(keys)
        wait.receive(self._answer(world, number, wait.next_op())[0])
        if wait.there:
            yield True
            return
        answer, store = self._answer(world, number, wait.next_op())
        if self.rules.blocking:
            answer, store = "", world.store
        wait.receive(answer)
        if wait.lost:
            yield self._raised(world._replace(store=store), number, rank)
        elif rank.waits != "keys":
            yield _with(world, number, rank._replace(waits="keys"))

    def _collective(self, world: World, number: int, rank: Rank) -> Iterator[World]:
        what, mine = rank.todo[0][1], rank.arrived
        if rank.waits != "collective":
            entered = world.entered
            if len(entered) == mine:
                entered = (*entered, what)
            elif entered[mine] != what:
                wrong(f"one rank enters {entered[mine]}, another {what}")
            again = rank._replace(waits="collective", arrived=mine + 1)
            yield _with(world, number, again, entered=entered)
            return
        missing = [other for other in world.ranks if other.arrived < mine]
        if not missing:
            yield _with(world, number, rank._replace(todo=rank.todo[1:], waits=""))
        elif any(other.end for other in missing) and not self.rules.deaf_collectives:
            yield self._raised(world, number, rank)


_ONE: dict[Any, Any] = {}
"""One object of each value, so that worlds are told apart by the identity of their parts."""


def _with(world: World, number: int, rank: Rank, **more: Any) -> World:
    rank = _ONE.setdefault(rank, rank)
    if "store" in more:
        more["store"] = _ONE.setdefault(more["store"], more["store"])
    ranks = (*world.ranks[:number], rank, *world.ranks[number + 1 :])
    return world._replace(ranks=ranks, **more)


def _identity(world: World) -> tuple[Any, ...]:
    return (*map(id, world.ranks), id(world.store), *world[2:])


@dataclasses.dataclass
class Found:
    states: int = 0
    ends: set[tuple[str, ...]] = dataclasses.field(default_factory=set)
    """How the ranks may end, all together."""


def explore(rules: Rules) -> Found:
    """Look at every state that can be reached; raise what is wrong, with the way there."""
    model, found = Model(rules), Found()
    first = model.begin()
    numbers, before = {_identity(first): 0}, [-1]
    worlds, backwards = [first], [[]]
    over: list[int] = []
    queue = deque([0])
    while queue:
        number, moved = queue.popleft(), False
        world = worlds[number]
        try:
            for following in model.nexts(world):
                same = _identity(following)
                known = numbers.get(same)
                if known == number:
                    continue
                moved = True
                if known is None:
                    known = numbers[same] = len(worlds)
                    worlds.append(following)
                    before.append(number)
                    backwards.append([])
                    queue.append(known)
                backwards[known].append(number)
            if not moved:
                _check_end(rules, world)
                found.ends.add(tuple(rank.end for rank in world.ranks))
                over.append(number)
        except WrongError as error:
            error.args = (f"{error}\n{_way(worlds, before, number)}",)
            raise
    found.states = len(worlds)
    lost = _that_never_end(over, backwards)
    if lost:
        wrong(f"never ends\n{_way(worlds, before, min(lost))}")
    return found


def _that_never_end(ends: Iterable[int], backwards: list[list[int]]) -> set[int]:
    """The states from which the ranks cannot come to an end any more."""
    over, ending = deque(ends), set(ends)
    while over:
        for number in backwards[over.popleft()]:
            if number not in ending:
                ending.add(number)
                over.append(number)
    return set(range(len(backwards))) - ending


def _check_end(rules: Rules, world: World) -> None:
    ends = [rank.end for rank in world.ranks]
    for rank in world.ranks:
        excused = rules.deaf_collectives and rank.waits == "collective" and any(ends)
        if not rank.end and not excused:
            wrong(f"a rank waits for {rank.waits} for ever: {rank.todo}")
    unhurt = (world.deaths, world.raises) == (rules.deaths, rules.raises)
    together = len(set(ends)) == 1 and ends[0] in {"finished", "stopped"}
    # told to end when its training was all but over, and that of rank 0 was
    late = ends[0] == "finished" and set(ends) <= {"finished", "left"}
    if unhurt and not (together or late):
        wrong(f"nobody died, and the ranks ended so: {ends}")


def _way(worlds: list[World], before: list[int], number: int) -> str:
    lines = []
    while number >= 0:
        world = worlds[number]
        lines += [
            f"   {rank.end or rank.waits or 'runs':10} told={rank.told} "
            f"todo={rank.todo[:2]} {_member(rank.member)}"
            for rank in world.ranks
        ]
        lines.append(f"{number}: {sorted(world.store)} {world.entered}")
        number = before[number]
    return "\n".join(reversed(lines))


V = VALIDATED
IN_VALIDATION = (boundary(1, 1), SAVE, boundary(1, V))
"""As a callback does that saves in `on_validation_end`; the second boundary is behind it."""
BATCHES = (boundary(1), SYNC, boundary(2))
BOTH = (boundary(1, 1), SAVE, boundary(1, V), SYNC, boundary(2))
LONGER = (boundary(1, 1), boundary(1, 2), SYNC, SAVE, boundary(1, V), SYNC, boundary(2))
SHORTER = (boundary(1, 1), SYNC, SAVE, boundary(1, V), SYNC, boundary(2))
STOP = ("stop",)

RULES = {
    "told to end": Rules((BOTH,) * 2, STOP),
    "told to requeue and to end": Rules((BATCHES,) * 2, ("stop", "requeue")),
    "saves at an interval": Rules((BATCHES,) * 2, ("stop", "save")),
    "more batches of validation on rank 0": Rules((LONGER, SHORTER), STOP, places=(2, 1)),
    "fewer batches of validation on rank 0": Rules((SHORTER, LONGER), STOP, places=(1, 2)),
    "a rank dies or raises": Rules((IN_VALIDATION,) * 2, STOP, deaths=1, raises=1),
    "three ranks, told to end": Rules((IN_VALIDATION[:2],) * 3, STOP, words=("save", "leave")),
    "three ranks, one dies": Rules((IN_VALIDATION[:2],) * 3, deaths=1),
}
SHORT = {"told to requeue and to end", "saves at an interval"}
"""Searches of a few seconds."""
THOROUGH = pytest.mark.thorough
LONG = {
    "told to requeue and to end": Rules((BOTH,) * 2, ("stop", "requeue")),
    "the store outlives rank 0": Rules((BOTH,) * 2, STOP, deaths=1, raises=1, agent=True),
    "collectives that never fail": Rules(
        (BOTH,) * 2, STOP, deaths=1, raises=1, agent=True, deaf_collectives=True
    ),
    "threads between an operation and its answer": Rules((BOTH,) * 2, STOP, deaths=1, split=True),
    "three ranks in training": Rules((BATCHES,) * 3, STOP),
    "three ranks in a validation": Rules((IN_VALIDATION,) * 3, STOP),
    "three ranks, one dies": Rules((IN_VALIDATION[:2],) * 3, STOP, deaths=1, words=("save",)),
    "three ranks, one raises": Rules((IN_VALIDATION[:2],) * 3, STOP, raises=1, words=("save",)),
}


def check(rules: Rules, record_property: Callable[[str, object], None]) -> None:
    found = explore(rules)
    record_property("states", found.states)
    print(f"{found.states} states")
    assert ("stopped",) * len(rules.programs) in found.ends or not rules.signals
    assert ("finished",) * len(rules.programs) in found.ends


@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=THOROUGH) for name in RULES]
)
def test_no_order_of_events_is_wrong(name, record_property):
    check(RULES[name], record_property)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", LONG)
def test_no_order_of_more_events_is_wrong(name, record_property):
    check(LONG[name], record_property)


def test_a_wait_that_holds_the_connection_to_the_store_would_hang():
    """So the search would find it."""
    with pytest.raises(WrongError, match="waits for keys for ever"):
        explore(Rules((IN_VALIDATION,) * 2, STOP, blocking=True))


def test_to_act_at_a_batch_of_validation_that_another_rank_lacks_would_hang():
    with pytest.raises(WrongError, match="waits for collective for ever"):
        explore(Rules((SHORTER, LONGER), STOP, places=(2, 2)))
