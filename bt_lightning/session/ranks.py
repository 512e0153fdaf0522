"""The ranks of one training: broadcasts from rank 0, and other meetings, without a framework.

No rank decides by what it alone can see (its disk, its environment, a signal that it got) whether
it comes to a meeting: another would wait for it for ever. Each method here is called by every rank
or by none, and what is to be done by what rank 0 sees is said by rank 0.
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from bt_lightning.errors import RanksApartError
from bt_lightning.session.errors_between_ranks import portable
from bt_lightning.session.process_group_store import begin_keys, next_key, process_group_store

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

DECIDING = timedelta(hours=24)
"""Longest wait of the other ranks for rank 0: it may fetch a large checkpoint."""
_GATHERING = timedelta(minutes=30)
"""As long as a process group waits by default."""
_POLL_S = (0.01, 0.2)
"""Between two looks at the key-value store, at first and at last."""


@dataclass(frozen=True, slots=True)
class _Said:
    value: Any = None
    error: Exception | None = None


@dataclass(frozen=True)
class Ranks:
    """One on every rank, made when the process group is there.

    Args:
        rank: global rank of this process.
        world_size: how many processes train together; 1 needs no process group.
        broadcast: a collective: what rank 0 gives, on every rank. Of picklable values.
        host: where rank 0 runs, by which the process group was made.
    """

    rank: int = 0
    world_size: int = 1
    broadcast: Callable[[Any], Any] = lambda value: value
    host: str = "127.0.0.1"

    @classmethod
    def of_process_group(cls) -> Ranks:
        """Those of torch's default process group; a single one where there is none."""
        import os

        import torch.distributed as dist

        if not dist.is_available() or not dist.is_initialized():
            return cls()

        def broadcast(value: Any) -> Any:
            box = [value]
            dist.broadcast_object_list(box)
            return box[0]

        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        return cls(dist.get_rank(), dist.get_world_size(), broadcast, host)

    @property
    def is_zero(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def from_zero(self, find: Callable[[], T]) -> T:
        """What `find` returns on rank 0, where alone it is called; on every rank.

        For what takes less than the timeout of the process group.

        Raises:
            Exception: on every rank, what `find` raised on rank 0.
        """
        if self.world_size == 1:
            return find()
        said = _Said()
        if self.is_zero:
            try:
                said = _Said(find())
            except Exception as error:  # noqa: BLE001 - every rank waits to hear of it
                said = _Said(error=portable(error))
        said = self.broadcast(said)
        if said.error is not None:
            raise said.error
        return said.value  # type: ignore[no-any-return]

    def from_slow_zero(
        self,
        find: Callable[[], T],
        limit: timedelta = DECIDING,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> T:
        """As `from_zero`, of what may take longer than a collective, as a fetch does.

        The other ranks call `meanwhile` again and again while they wait.

        Raises:
            RanksApartError: rank 0 did not come to an end within `limit`.
            torch.distributed.DistError: rank 0 is gone.
        """
        if self.world_size == 1:
            return find()
        store, key = process_group_store(), next_key("zero")
        if not self.is_zero:

            def is_announced() -> bool:
                meanwhile()
                return bool(store.check([key]))

            if not poll(is_announced, limit):
                msg = f"rank 0 did not come within {limit}"
                raise RanksApartError(msg)
            return self.from_zero(find)

        def announced() -> T:
            try:
                return find()
            finally:
                store.set(key, "here")

        return self.from_zero(announced)

    def begin_meetings(self) -> None:
        """Begin the meetings of a fit: their keys are those of no other, whatever that came to."""
        begin_keys(self.from_zero(lambda: uuid.uuid4().hex))

    def gather(self, mine: str, limit: timedelta = _GATHERING) -> list[str]:
        """What each rank has to say, in rank order; on every rank.

        Raises:
            RanksApartError: on every rank that came: not all did within `limit`.
        """
        if self.world_size == 1:
            return [mine]
        store, label = process_group_store(), next_key("gather")
        keys = [f"{label}/{rank}" for rank in range(self.world_size)]
        store.set(keys[self.rank], mine)
        if self.is_zero:
            poll(lambda: store.check(keys), limit)
            said = [store.get(key).decode() if store.check([key]) else None for key in keys]
            store.set(f"{label}/all", json.dumps(said))
        elif poll(lambda: store.check([f"{label}/all"]), 2 * limit):
            said = json.loads(store.get(f"{label}/all"))
        else:
            said = [None]
        missing = [str(rank) for rank, one in enumerate(said) if one is None]
        if missing:
            msg = f"no word of rank {', '.join(missing)} within {limit}"
            raise RanksApartError(msg)
        return [one for one in said if one is not None]


def poll(is_there: Callable[[], bool], limit: timedelta) -> bool:
    """Wait by looking: a call that waits would hold the store's client, which others need."""
    until, pause_s = time.monotonic() + limit.total_seconds(), _POLL_S[0]
    while not is_there():
        if time.monotonic() > until:
            return False
        time.sleep(pause_s)
        pause_s = min(1.5 * pause_s, _POLL_S[1])
    return True
