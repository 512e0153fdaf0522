"""The pool of arenas of one run: allocated in the background, reused, limited by a budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.errors import ArenaTooLargeError
from bt_lightning.localdir.memory_available import memory_available
from bt_lightning.snapshot.arena import Arena
from bt_lightning.snapshot.arena_layout import arena_size
from bt_lightning.snapshot.cuda_copies import PinnedArenas

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    import torch

    from bt_lightning.worker.worker_handle import Worker

_SHARE = 0.8
"""Largest part of the free memory that one arena may take."""


class ArenaPool:
    """At most `count` arenas of at most `budget` bytes in all; used on the training thread only.

    `submit` runs slow work (populating pages, pinning them for CUDA) on a background thread.
    """

    def __init__(
        self,
        worker: Worker,
        submit: Callable[[Callable[[], None]], Future[None]],
        *,
        count: int,
        budget: int | None,
        pinned_for: torch.device | None,
    ) -> None:
        self._worker = worker
        self._submit = submit
        self._budget = budget
        self._pins = PinnedArenas(pinned_for) if pinned_for is not None else None
        self._arenas: list[Arena | None] = [None] * count
        self._users: list[set[int]] = [set() for _ in range(count)]
        self._touching: dict[int, Future[None]] = {}
        self._made = 0

    @property
    def size(self) -> int:
        """Bytes of host memory that the arenas take."""
        return sum(arena.size for arena in self._arenas if arena is not None)

    def idle_slot(self) -> int | None:
        """A slot that no save uses, preferably with an arena; None if all are in use."""
        slots = [slot for slot, users in enumerate(self._users) if not users]
        return min(slots, key=lambda slot: self._arenas[slot] is None, default=None)

    def prepare(self, size: int) -> None:
        """Allocate every idle arena for a snapshot of `size` bytes, within the budget."""
        for slot, users in enumerate(self._users):
            arena = self._arenas[slot]
            if not users and (arena is None or arena.size < size):
                try:
                    self.arena_for(slot, size)
                except ArenaTooLargeError:
                    return  # the save that needs the arena handles the error

    def arena_for(self, slot: int, size: int) -> Arena:
        """The arena of an idle slot for `size` bytes; one that is too small is replaced.

        Raises:
            ArenaTooLargeError: the budget or the machine's memory does not allow the size.
        """
        arena = self._arenas[slot]
        if arena is not None and arena.size >= size:
            return arena
        old = arena.size if arena is not None else 0
        size = arena_size(size)
        self._check(size, old)
        if arena is not None:
            self._drop(slot)
        try:
            arena = Arena(self._made, size)
        except OSError as error:
            msg = f"the host cannot allocate an arena of {size:,} bytes: {error}"
            raise ArenaTooLargeError(msg) from error
        self._made += 1
        self._arenas[slot] = arena
        self._worker.share(arena.index, arena.descriptor, arena.size)
        self._touching[slot] = self._submit(lambda: self._touch_and_pin(arena))
        return arena

    def pages_ready(self, slot: int) -> Future[None]:
        """A future that is done when all pages of the slot's arena are populated and pinned."""
        return self._touching[slot]

    def use(self, slot: int, number: int) -> None:
        """Mark the slot as used by the save `number` until `release`."""
        self._users[slot].add(number)

    def users_beside(self, number: int) -> frozenset[int]:
        """All saves that use the same arena as the save `number`, which is included."""
        return next(frozenset(users) for users in self._users if number in users)

    def release(self, number: int) -> None:
        """Note that the save `number` does not need its arena any more."""
        for users in self._users:
            users.discard(number)

    def close(self) -> None:
        """Release all arenas; the caller makes sure that no copy is in progress."""
        for slot in range(len(self._arenas)):
            self._drop(slot)

    def _touch_and_pin(self, arena: Arena) -> None:
        arena.touch(0, arena.size)
        if self._pins is not None:
            self._pins.pin(arena)

    def _drop(self, slot: int) -> None:
        arena, self._arenas[slot] = self._arenas[slot], None
        if arena is not None:
            arena.abandoned = True
            pages_ready = self._touching.pop(slot)
            if not pages_ready.cancel():
                pages_ready.exception()  # waits a few milliseconds; the result does not matter
            if self._pins is not None:
                self._pins.unpin(arena)
            self._worker.drop(arena.index)
            arena.close()

    def _check(self, size: int, old: int) -> None:
        if self._budget is not None and self.size - old + size > self._budget:
            msg = (
                f"a snapshot needs {size:,} bytes of host memory, arena_memory is {self._budget:,}"
            )
            raise ArenaTooLargeError(msg)
        available = memory_available()
        if available is not None and size > _SHARE * (available + old):
            msg = f"a snapshot needs {size:,} bytes of host memory, {available + old:,} are free"
            raise ArenaTooLargeError(msg)
