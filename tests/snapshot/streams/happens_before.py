"""Work that streams and host threads do, in every order that events and waits allow.

A piece of work is done when an order is chosen for it: at random, or each order in turn. What must
come before it is a set of work, kept as the bits of an integer. A conflict is two accesses to the
same bytes, one of them a write, of which neither must come before the other: some order is wrong,
whether it is tried or not.
"""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass


class RandomOrders:
    """One order, chosen by a seed.

    A stream is ahead of the others until chance says otherwise: by equal chances, long work would
    hardly ever be done before short work.
    """

    def __init__(self, seed) -> None:
        self._chance = random.Random(seed)
        self._delay = self._chance.choice((0.02, 0.1, 0.5))
        self._ranks = {}

    def choose(self, ready):
        if self._chance.random() < 0.02:
            self._ranks.clear()
        return max(ready, key=self._rank)

    def choose_or_none(self, ready):
        """None: the host goes on first."""
        return None if self._chance.random() < self._delay else self.choose(ready)

    def _rank(self, work):
        return self._ranks.setdefault(work.stream, self._chance.random())


class EveryOrder:
    """All orders, one after another: choices are counted up as the digits of a number."""

    def __init__(self) -> None:
        self._digits = []
        self._place = 0

    def choose(self, ready):
        return ready[self._digit(len(ready))]

    def choose_or_none(self, ready):
        digit = self._digit(len(ready) + 1)
        return ready[digit] if digit < len(ready) else None

    def _digit(self, count):
        if self._place == len(self._digits):
            self._digits.append([0, count])
        self._place += 1
        return self._digits[self._place - 1][0]

    def advance(self):
        """Go on to the next order; False when there is none."""
        self._place = 0
        while self._digits and self._digits[-1][0] + 1 == self._digits[-1][1]:
            self._digits.pop()
        if self._digits:
            self._digits[-1][0] += 1
        return bool(self._digits)


@dataclass(frozen=True)
class Span:
    """Bytes that are accessed: addresses, and which of the tensors that had this memory in turn."""

    start: int
    end: int
    owner: int = 0
    """0 for memory that is never handed out twice."""

    def overlaps(self, other):
        return self.start < other.end and other.start < self.end


@dataclass
class Work:
    index: int
    label: str
    stream: str
    before: int
    act: object
    reads: list
    writes: list


@dataclass
class SimulatedStream:
    name: str
    order: Orders
    done_before: int = 0
    """All that must be done before what is enqueued next."""

    def wait_event(self, event):
        self.done_before |= event.recorded

    def wait_stream(self, stream):
        self.done_before |= stream.done_before

    def synchronize(self):
        self.order.host_waits(self.done_before)


@dataclass
class SimulatedEvent:
    order: Orders
    recorded: int = 0
    """All that must be done before the event is; nothing as long as it was not recorded."""

    def record(self, stream):
        self.recorded = stream.done_before

    def synchronize(self):
        self.order.host_waits(self.recorded)


@dataclass
class HostThread:
    name: str
    done_before: int = 0
    stream: SimulatedStream | None = None
    waited_for: int = 0
    """All work that this thread waited for."""


class Orders:
    """The work of one run of the code under test."""

    def __init__(self, choices, *, of_real_threads=False) -> None:
        """What threads wait for among themselves is not seen: real ones show no conflicts."""
        self.conflicts = []
        self.work = []
        self.default_stream = SimulatedStream("the default stream", self)
        self._choices = choices
        self._compares = not of_real_threads
        self._threads = threading.local()
        self._pending = {}
        self._lock = threading.RLock()

    @property
    def host(self):
        """The host thread that runs."""
        if not hasattr(self._threads, "host"):
            name = threading.current_thread().name
            self._threads.host = HostThread(name, stream=self.default_stream)
        return self._threads.host

    @host.setter
    def host(self, thread):
        self._threads.host = thread

    def enqueue(self, stream, label, act, reads=(), writes=()):
        """Device work: it is done after what its stream waits for, and after it was enqueued."""
        with self._lock:
            before = stream.done_before | self.host.done_before
            work = self._add(label, stream.name, before, act, reads, writes)
            stream.done_before = before | 1 << work.index
            self._pending[work.index] = work

    def on_host(self, label, act=lambda: None, reads=(), writes=()):
        """Work of a host thread, done at once; any device work may be done just before it."""
        with self._lock:
            while (ready := self._ready()) and (
                choice := self._choices.choose_or_none(ready)
            ) is not None:
                self._do(choice)
            before = self.host.done_before
            work = self._add(label, f"the {self.host.name} thread", before, act, reads, writes)
            self.host.done_before |= 1 << work.index
            return act()

    def host_waits(self, wanted):
        with self._lock:
            self.host.waited_for |= wanted
            while any(wanted >> index & 1 for index in self._pending):
                self._do(self._choices.choose(self._ready()))
            self.host.done_before |= wanted

    def finish(self):
        """Do all that is left."""
        self.host_waits((1 << len(self.work)) - 1)

    def labels(self, wanted):
        return [work.label for work in self.work if wanted >> work.index & 1]

    def _add(self, label, stream, before, act, reads, writes):
        label = f"{label} on {stream}"
        work = Work(len(self.work), label, stream, before, act, list(reads), list(writes))
        for earlier in self.work if self._compares else ():
            if not before >> earlier.index & 1:
                self._compare(earlier, work)
        self.work.append(work)
        return work

    def _compare(self, earlier, work):
        pairs = [(one, two) for one in earlier.writes for two in work.reads + work.writes]
        pairs += [(one, two) for one in earlier.reads for two in work.writes]
        for one, two in pairs:
            if one.overlaps(two):
                kind = "unordered accesses" if one.owner == two.owner else "use after free"
                self.conflicts.append(f"{kind}: {earlier.label}, {work.label}")
                return

    def _ready(self):
        left = self._pending
        return [one for one in left.values() if not any(one.before >> index & 1 for index in left)]

    def _do(self, work):
        del self._pending[work.index]
        work.act()
