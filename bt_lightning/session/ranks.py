"""Where all ranks of a Trainer meet, outside of training.

No rank decides by what it alone can see (its disk, its environment, a signal that it got) whether
it comes to a meeting: another would wait for it for ever. Each of these functions is called by
every rank or by none, and what is to be done by what rank 0 sees is said by rank 0.
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from bt_lightning.errors import RanksApartError
from bt_lightning.lightning_plugin import compat
from bt_lightning.lightning_plugin.trainer_checks import portable

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning.pytorch import Trainer

T = TypeVar("T")

DECIDING = timedelta(hours=24)
"""Longest wait of the other ranks for rank 0: it may fetch a large checkpoint."""
_GATHERING = timedelta(minutes=30)
"""As long as a process group waits by default."""
_LOOKS_S = (0.01, 0.2)
"""Between two looks at the key-value store, at first and at last."""


@dataclass(frozen=True, slots=True)
class _Said:
    value: Any = None
    error: Exception | None = None


def from_zero(trainer: Trainer, find: Callable[[], T]) -> T:
    """What `find` returns on rank 0, where alone it is called; on every rank.

    For what takes less than the timeout of the process group.

    Raises:
        Exception: on every rank, what `find` raised on rank 0.
    """
    if trainer.world_size == 1:
        return find()
    said = _Said()
    if trainer.is_global_zero:
        try:
            said = _Said(find())
        except Exception as error:  # noqa: BLE001 - every rank waits to hear of it
            said = _Said(error=portable(error))
    said = trainer.strategy.broadcast(said)
    if said.error is not None:
        raise said.error
    return said.value  # type: ignore[no-any-return]


def convene(trainer: Trainer) -> None:
    """Begin the meetings of a fit: their names are those of no other fit, whatever it came to."""
    compat.begin_turns(from_zero(trainer, lambda: uuid.uuid4().hex))


def from_slow_zero(trainer: Trainer, find: Callable[[], T], limit: timedelta = DECIDING) -> T:
    """As `from_zero`, of what may take longer than a collective: an hour, to fetch a checkpoint.

    Raises:
        RanksApartError: rank 0 did not come to an end within `limit`.
        torch.distributed.DistError: rank 0 is gone.
    """
    if trainer.world_size == 1:
        return find()
    store, key = compat.store_of_ranks(), compat.turn("zero")
    if not trainer.is_global_zero:
        if not _come(lambda: store.check([key]), limit):
            msg = f"rank 0 did not come within {limit}"
            raise RanksApartError(msg)
        return from_zero(trainer, find)

    def announced() -> T:
        try:
            return find()
        finally:
            store.set(key, "here")

    return from_zero(trainer, announced)


def gather(trainer: Trainer, mine: str, limit: timedelta = _GATHERING) -> list[str]:
    """What each rank has to say, in rank order; on every rank.

    Raises:
        RanksApartError: on every rank that came: not all did within `limit`.
    """
    if trainer.world_size == 1:
        return [mine]
    store, label = compat.store_of_ranks(), compat.turn("gather")
    keys = [f"{label}/{rank}" for rank in range(trainer.world_size)]
    store.set(keys[trainer.global_rank], mine)
    if trainer.is_global_zero:
        _come(lambda: store.check(keys), limit)
        said = [store.get(key).decode() if store.check([key]) else None for key in keys]
        store.set(f"{label}/all", json.dumps(said))
    elif _come(lambda: store.check([f"{label}/all"]), 2 * limit):
        said = json.loads(store.get(f"{label}/all"))
    else:
        said = [None]
    missing = [str(rank) for rank, one in enumerate(said) if one is None]
    if missing:
        msg = f"no word of rank {', '.join(missing)} within {limit}"
        raise RanksApartError(msg)
    return [one for one in said if one is not None]


def _come(is_there: Callable[[], bool], limit: timedelta) -> bool:
    """Wait by looking: a call that waits would hold the store's client, which others need."""
    until, pause_s = time.monotonic() + limit.total_seconds(), _LOOKS_S[0]
    while not is_there():
        if time.monotonic() > until:
            return False
        time.sleep(pause_s)
        pause_s = min(1.5 * pause_s, _LOOKS_S[1])
    return True


class Farewell:
    """The end of a fit: no rank leaves it before rank 0, and none ends by a signal alone.

    A rank that goes on early may make the next process group, and would find the key-value store
    of this one. Made by every rank when the fit begins.
    """

    def __init__(self, trainer: Trainer, lost: Callable[[], str] | None = None) -> None:
        """`lost` says which rank is gone, if one is: nobody waits for rank 0 then."""
        self._lost = lost
        self._alone = trainer.world_size == 1
        if not self._alone:
            self._store, label = compat.store_of_ranks(), compat.turn("farewell")
            self._rank, self._ranks = trainer.global_rank, trainer.world_size
            self._told, self._over = f"{label}/told", f"{label}/over"

    def say(self, *, told: bool) -> bool:
        """Rank 0, when it has nothing left to do: whether all end by a signal.

        So they do when rank 0 was told to end by one, or any rank that is at its own end.
        """
        if self._alone:
            return told
        try:
            told = told or self._store.check([self._told])
            self._store.set(self._over, "stop" if told else "go")
        except RuntimeError:  # of torch.distributed: the others are gone, and the store with one
            return told
        return told

    def hear(self, is_told: Callable[[], bool], limit: timedelta = DECIDING) -> bool:
        """Every other rank: wait for rank 0; whether all end by a signal."""
        said = False

        def look() -> bool:
            nonlocal said
            if is_told() and not said:
                self._store.set(self._told, "")
                said = True
            gone = self._lost is not None and bool(self._lost())
            return gone or bool(self._store.check([self._over]))

        try:
            over = _come(look, limit) and self._store.check([self._over])
            return self._store.get(self._over) == b"stop" if over else is_told()
        except RuntimeError:  # rank 0 left, and the store with it
            return is_told()
