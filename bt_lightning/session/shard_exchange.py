"""Lets all ranks agree who writes which part of a sharded state, when its structure is known.

Each rank says by a digest what it holds; different tables are sent once, through the key-value
store of the process group: no collective runs, and nothing happens at a save of a known structure.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future, wait
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from bt_lightning.errors import (
    CheckpointError,
    RankLostError,
    RanksApartError,
    UnsupportedStateError,
)
from bt_lightning.session.process_group_store import next_key, process_group_store
from bt_lightning.session.rank_exchange import own_client
from bt_lightning.session.shard_tables import (
    digest_of_table,
    receive_parts,
    send_parts,
    table_from_bytes,
    table_to_bytes,
)
from bt_lightning.sharding.structure import merge
from bt_lightning.sharding.write_plan import WritePlan
from bt_lightning.snapshot.copy_threads import copy_threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.session.ranks import Ranks
    from bt_lightning.sharding.structure import Table

T = TypeVar("T")
_LIMIT_S: Final = 120.0
_POLL_S: Final = (0.002, 0.1)
"""Between two looks at the key-value store, at first and at last."""
_LOOK_S: Final = 0.1
"""Between two looks at how far other ranks are."""
_KEPT: Final = 8
"""Plans of earlier structures: a run may go back and forth between a few."""
_Place = tuple[int, int]
"""Of an agreement, in the order of training: `(k, 0)` at save k, `(k, n)` the n-th behind it."""
_EXPECTED: Final = (
    "expected every rank to save at the same step, with the same parameters and optimizers"
)
_GONE_ON: Final = {"gone on": ""}
"""Word of a rank that had none to say at a place, and is behind it."""


class ShardExchange:
    """The agreements of one fit; every rank makes one at the same moment, with its process group.

    Every rank calls `run`, and saves a state of another structure, at the same moments of its
    training thread. One that does not is found out: each says how far it is.

    Args:
        ranks: of this fit.
        saves: how many saves the run has had, with the one under way; alike on all ranks.
        limit_s: how long rank 0 waits for what the others hold, in seconds.
    """

    def __init__(self, ranks: Ranks, saves: Callable[[], int], limit_s: float = _LIMIT_S) -> None:
        self._rank, self._world_size = ranks.rank, ranks.world_size
        self._limit_s = limit_s
        self._saves = saves
        self._name = next_key("shards") if self._world_size > 1 else ""
        self._place: _Place = (0, 0)
        """Of the last `run`."""
        self._thread = copy_threads(1, "bt_lightning shards")
        self._closed = threading.Event()
        self._store: Any = None
        self._plans: OrderedDict[str, WritePlan] = OrderedDict()
        self._tables: dict[str, Table] = {}
        self._last: Future[Any] | None = None
        self._agreements = 0
        if self._world_size > 1:  # while rank 0 is there: to connect to one that is gone takes long
            self._thread.submit(self._connected)

    @property
    def rank(self) -> int:
        """The global rank of this process."""
        return self._rank

    def result(self, future: Future[T]) -> T:
        """What `run` comes to; waits for it.

        Raises:
            RanksApartError: it took more than three times the limit.
        """
        if not wait([future], 3 * self._limit_s).done:
            msg = f"the ranks did not agree on a save within {3 * self._limit_s:.0f} s"
            raise RanksApartError(msg)
        return future.result()

    def run(self, act: Callable[[Callable[[Table], WritePlan]], T]) -> Future[T]:
        """Run `act(agree)` beside training; `agree(table)` is the plan of all ranks, called once.

        Every rank calls this at the same moment, on its training thread. If `act` fails on one
        rank, `agree` raises on all.
        """
        save = self._saves()
        self._place = (save, self._place[1] + 1 if self._place[0] == save else 1)
        self._last = self._begin(self._place, act)
        return self._last

    def plan(self, table: Table) -> WritePlan:
        """Who writes what; at once if this rank has had that table, else once all have said theirs.

        Called on the training thread of every rank, at a save.

        Raises:
            UnsupportedStateError: the tables of two ranks do not fit; names the tensor.
            RanksApartError: a rank did not say what it holds in time, or saves a state that it has
                agreed on before; names it.
        """
        if self._last is not None:  # it may be about this very table
            last, self._last = self._last, None
            with contextlib.suppress(Exception):  # whoever ran it is told
                self.result(last)
        digest = digest_of_table(table_to_bytes(table))
        known = self._plans.get(digest)
        if known is not None:
            self.go_on()
            return known
        return self.result(self._begin((self._saves(), 0), lambda agree: agree(table)))

    def go_on(self) -> None:
        """Called at a save of a structure that was agreed on: let no rank wait for a word here."""
        if self._world_size > 1 and not self._closed.is_set():
            self._thread.submit(self._say_place, (self._saves(), 0))

    def refuse(self, error: BaseException) -> None:
        """Let the ranks that save another structure know why this rank cannot; instead of `plan`.

        Does not wait.
        """

        def fail(_: object) -> None:
            raise error

        if not self._closed.is_set():
            self._begin((self._saves(), 0), fail)

    def close(self) -> None:
        """End the thread; what is under way fails. Idempotent."""
        self._closed.set()
        self._thread.shutdown()

    def _begin(self, place: _Place, act: Callable[[Callable[[Table], WritePlan]], T]) -> Future[T]:
        self._agreements += 1

        def acting() -> T:
            try:
                return act(lambda table: self._agree(place, table))
            except BaseException as error:
                self._say_error(place, error)
                raise

        return self._thread.submit(acting)

    def _key(self, place: _Place) -> str:
        return f"{self._name}/{place[0]}.{place[1]}"

    # the thread

    def _agree(self, place: _Place, table: Table) -> WritePlan:
        data = table_to_bytes(table)
        digest = digest_of_table(data)
        self._tables[digest] = table
        if self._world_size == 1:
            digests = [digest]
        else:
            try:
                digests = self._digests(place, digest)
                self._share(self._key(place), digests, digest, data)
            except RuntimeError as error:  # of the store
                msg = "the key-value store of the process group is gone, and rank 0 with it"
                raise RankLostError(msg) from error
        different = list(dict.fromkeys(digests))
        tables = [self._tables[each] for each in different]
        plan = WritePlan(merge(tables, [different.index(each) for each in digests]))
        self._tables = {each: self._tables[each] for each in different}
        self._plans[digest] = plan
        self._plans.move_to_end(digest)
        while len(self._plans) > _KEPT:
            self._plans.popitem(last=False)
        return plan

    def _digests(self, place: _Place, digest: str) -> list[str]:
        """The digest of each rank's table; the same list, or the same error, on every rank."""
        said = self._meet(place, {"digest": digest})
        missing = [str(rank) for rank, each in enumerate(said) if each is None]
        if missing:
            msg = (
                f"no word of rank {', '.join(missing)} within {self._limit_s:.0f} s of what it"
                f" holds of the sharded state: {_EXPECTED}"
            )
            raise RanksApartError(msg)
        behind = [str(rank) for rank, each in enumerate(said) if each == _GONE_ON]
        if behind:
            msg = (
                "the sharded state has other tensors, shapes or meshes than at the saves before,"
                f" but not on rank {', '.join(behind)}: {_EXPECTED}"
            )
            raise RanksApartError(msg)
        for rank, each in enumerate(said):
            if each is not None and "error" in each:
                msg = f"the sharded state cannot be saved, by rank {rank}: {each['error']}"
                raise UnsupportedStateError(msg)
        return [each["digest"] for each in said if each]

    def _meet(self, place: _Place, mine: dict[str, str]) -> list[dict[str, str] | None]:
        """What each rank says at a place; None of one that came to no word in time."""
        store, key = self._connected(), self._key(place)
        keys = [f"{key}/{rank}" for rank in range(self._world_size)]
        store.set(keys[self._rank], json.dumps(mine))
        self._say_place(place)
        if self._rank:
            over = partial(self._is_behind, 0, place)
            if not self._await([f"{key}/all"], 2 * self._limit_s, over):
                return [_GONE_ON if over() else None, *({} for _ in keys[1:])]
        else:
            self._await(keys, self._limit_s, partial(self._have_spoken, place))
            said = [json.loads(store.get(one)) if store.check([one]) else None for one in keys]
            for rank, each in enumerate(said):
                if each is None and self._is_behind(rank, place):
                    said[rank] = _GONE_ON
            store.set(f"{key}/all", json.dumps(said))
        found: list[dict[str, str] | None] = json.loads(store.get(f"{key}/all"))
        return found

    def _say_place(self, place: _Place) -> None:
        """Say that this rank has said what it has to say up to a place."""
        self._connected().set(f"{self._name}/at/{self._rank}", json.dumps(place))

    def _is_behind(self, rank: int, place: _Place) -> bool:
        """Whether a rank has passed a place; at it, without a word."""
        store, key = self._connected(), f"{self._name}/at/{rank}"
        if not store.check([key]):
            return False
        said = tuple(json.loads(store.get(key)))
        return said > place or (said == place and not store.check([f"{self._key(place)}/{rank}"]))

    def _have_spoken(self, place: _Place) -> bool:
        """Whether every other rank has said its word at a place, or passed it."""
        key = self._key(place)
        return all(
            self._connected().check([f"{key}/{rank}"]) or self._is_behind(rank, place)
            for rank in range(1, self._world_size)
        )

    def _share(self, key: str, digests: list[str], mine: str, data: bytes) -> None:
        """Send the table if no lower rank has it; receive those that this rank does not know."""
        store = self._connected()
        if digests.index(mine) == self._rank:
            send_parts(store, f"{key}/table/{mine}", data)
        for digest in dict.fromkeys(digests):
            if digest in self._tables:
                continue
            where = f"{key}/table/{digest}"
            if not self._await([where], self._limit_s):
                msg = (
                    f"rank {digests.index(digest)} has not sent what it holds of the sharded state"
                    f" within {self._limit_s:.0f} s"
                )
                raise RanksApartError(msg)
            self._tables[digest] = table_from_bytes(receive_parts(store, where))

    def _say_error(self, place: _Place, error: BaseException) -> None:
        """Let no rank wait for what this one cannot say; what it has said stays."""
        if self._world_size == 1:
            return
        own = isinstance(error, CheckpointError)
        said = {"error": str(error) if own else f"{type(error).__name__}: {error}"}
        key = self._key(place)
        with contextlib.suppress(RuntimeError):  # the store is gone, and with it who would read
            store = self._connected()
            if store.check([f"{key}/{self._rank}"]):
                return
            store.set(f"{key}/{self._rank}", json.dumps(said))
            self._say_place(place)
            if self._rank == 0:  # all others wait for what it makes of their words
                others: list[dict[str, str]] = [{} for _ in range(1, self._world_size)]
                store.set(f"{key}/all", json.dumps([said, *others]))

    def _connected(self) -> Any:
        if self._store is None:
            self._store = own_client(process_group_store())
        return self._store

    def _await(
        self, keys: list[str], limit_s: float, is_over: Callable[[], bool] = lambda: False
    ) -> bool:
        """Whether all keys are there within the limit; `is_over`: whether to wait no longer."""
        until, pause_s = time.monotonic() + limit_s, _POLL_S[0]
        look_at = time.monotonic() + _LOOK_S
        while not self._store.check(keys):
            now = time.monotonic()
            if now > look_at:
                if is_over():
                    return bool(self._store.check(keys))  # what was said before
                look_at = time.monotonic() + max(_LOOK_S, 10 * (time.monotonic() - now))
            if now > until or self._closed.wait(pause_s):
                return False
            pause_s = min(1.5 * pause_s, _POLL_S[1])
        return True
