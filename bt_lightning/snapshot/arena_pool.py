"""The arenas of one run: made and touched beside training, reused, and kept within a budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.errors import ArenaTooLargeError
from bt_lightning.snapshot.arena import Arena, memory_available
from bt_lightning.snapshot.arena_layout import capacity
from bt_lightning.snapshot.cuda_copies import Pins

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    import torch

    from bt_lightning.worker.worker_handle import Worker

_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
_SHARE = 0.8
"""Part of the memory that is still free which an arena may take."""


class ArenaPool:
    """At most `count` arenas, together of at most `budget` bytes; training thread only.

    `later` runs what takes long, touching and pinning, on a thread of its own.
    """

    def __init__(
        self,
        worker: Worker,
        later: Callable[[Callable[[], None]], Future[None]],
        *,
        count: int,
        budget: int | None,
        pinned_for: torch.device | None,
    ) -> None:
        self._worker = worker
        self._later = later
        self._budget = budget
        self._pins = Pins(pinned_for) if pinned_for is not None else None
        self._arenas: list[Arena | None] = [None] * count
        self._users: list[set[int]] = [set() for _ in range(count)]
        self._warming: dict[int, Future[None]] = {}
        self._made = 0

    @property
    def size(self) -> int:
        """Bytes of host memory that are held."""
        return sum(arena.size for arena in self._arenas if arena is not None)

    def idle(self) -> int | None:
        """A slot that no save uses, one with an arena if there is any; None if all are in use."""
        slots = [slot for slot, users in enumerate(self._users) if not users]
        return min(slots, key=lambda slot: self._arenas[slot] is None, default=None)

    def prepare(self, size: int) -> None:
        """Have room for `size` bytes in every idle arena, as far as the budget goes."""
        for slot, users in enumerate(self._users):
            arena = self._arenas[slot]
            if not users and (arena is None or arena.size < size):
                try:
                    self.ready(slot, size)
                except ArenaTooLargeError:
                    return  # the save that needs it decides what to do

    def ready(self, slot: int, size: int) -> Arena:
        """The arena of an idle slot, with room for `size` bytes; a small one is made anew, larger.

        Raises:
            ArenaTooLargeError: the budget, or the memory of this machine, does not allow it.
        """
        arena = self._arenas[slot]
        if arena is not None and arena.size >= size:
            return arena
        old = arena.size if arena is not None else 0
        size = capacity(size)
        self._check(size, old)
        if arena is not None:
            self._drop(slot)
        try:
            arena = Arena(self._made, size)
        except OSError as error:
            msg = f"the host gives no arena of {size:,} bytes: {error}"
            raise ArenaTooLargeError(msg) from error
        self._made += 1
        self._arenas[slot] = arena
        self._worker.share(arena.index, arena.descriptor, arena.size)
        self._warming[slot] = self._later(lambda: self._warm(arena))
        return arena

    def warming(self, slot: int) -> Future[None]:
        """What is done when every page of the slot's arena is there."""
        return self._warming[slot]

    def use(self, slot: int, number: int) -> None:
        """The save `number` has its image there, until `release`."""
        self._users[slot].add(number)

    def users_beside(self, number: int) -> frozenset[int]:
        """The saves with an image in the arena of the save `number`, that one included."""
        return next(frozenset(users) for users in self._users if number in users)

    def release(self, number: int) -> None:
        """The save `number` needs its arena no longer."""
        for users in self._users:
            users.discard(number)

    def close(self) -> None:
        """Give all the memory back; no copy is under way."""
        for slot in range(len(self._arenas)):
            self._drop(slot)

    def _warm(self, arena: Arena) -> None:
        arena.touch(0, arena.size)
        if self._pins is not None:
            self._pins.pin(arena)

    def _drop(self, slot: int) -> None:
        arena, self._arenas[slot] = self._arenas[slot], None
        if arena is not None:
            arena.abandoned = True
            warming = self._warming.pop(slot)
            if not warming.cancel():
                warming.exception()  # waits for a few milliseconds; what it says matters no more
            if self._pins is not None:
                self._pins.unpin(arena)
            self._worker.drop(arena.index)
            arena.close()

    def _check(self, size: int, old: int) -> None:
        if self._budget is not None and self.size - old + size > self._budget:
            msg = (
                f"a snapshot takes {size:,} bytes of host memory, arena_memory is {self._budget:,}"
            )
            raise ArenaTooLargeError(msg)
        available = memory_available(_MEMINFO, _CGROUP)
        if available is not None and size > _SHARE * (available + old):
            msg = f"a snapshot takes {size:,} bytes of host memory, {available + old:,} are free"
            raise ArenaTooLargeError(msg)
