"""Exchange of bytes between ranks through the process group's key-value store.

It uses its own connection to the store and polls instead of waiting inside it: a wait (also one of
a torch collective) blocks the connection for other threads. So a training thread that waits here
still handles signals and notices a rank that is gone.
"""

from __future__ import annotations

import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from bt_lightning.errors import RankLostError
from bt_lightning.rank_protocol import Answer, Await, Check, Get, Op, Set
from bt_lightning.session.process_group_store import next_key, process_group_store
from bt_lightning.session.rank_liveness import LivenessCaller, LivenessListener
from bt_lightning.worker.worker_handle import unlimited

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.session.ranks import Ranks

log = logging.getLogger(__name__)

T = TypeVar("T")

LONGEST_S = 1800.0
"""Longest wait for another rank, the same as torch's timeout for a collective."""
_SHORTEST_S, _LONG_S = 0.0005, 0.02
_LOOK_S = 0.2
_MEET_S = 60.0
_WATCHED_S = 5.0
_PART = 4 * 1024**2
"""Bytes of one value. torch's server ends at one of 8 MiB, and with it every rank."""
_COUNT = 4
"""Bytes of the number of parts, before the first one."""
_JOIN_S = 5.0
"""Longest wait for the thread to end: longer than one poll and one connection attempt."""


class RankExchange:
    """The exchange of one fit with several ranks; every rank creates it at the same moment.

    `run` and `lost` may be called on any thread, the other methods on the training thread.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.rank, self.ranks = ranks.rank, ranks.world_size
        self._name = next_key("peers")
        self._shared = process_group_store()
        self._own: Any = None
        self._connected = threading.Event()
        self._watched = threading.Event()
        """Rank 0 can notice the death of this rank, or never will."""
        self._host = ranks.host
        self.bell = threading.Event()
        """Set when another rank has rung: the store may have news."""
        self._line: LivenessCaller | LivenessListener | None = None
        """The liveness connections, while this rank listens to them."""
        self._lost_rank = ""
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._watch_connections, daemon=True, name="bt_lightning peers"
        )
        self._thread.start()

    @property
    def _store(self) -> Any:
        if not self._connected.wait(_MEET_S):  # connecting itself blocks signals
            msg = f"the key-value store of the process group did not answer for {_MEET_S:.0f} s"
            raise RankLostError(msg)
        return self._own

    def run(self, op: Op) -> Answer:
        """Run one operation on the store; raises RuntimeError when the store is gone."""
        if isinstance(op, Set):
            self._store.set(op.key, op.value)
            return None
        if isinstance(op, Check):
            return bool(self._store.check(list(op.keys)))
        if isinstance(op, Get):
            return str(self._store.get(op.key).decode())
        return self.lost()

    def wait_until_watched(self) -> None:
        """Wait until rank 0 would notice that this rank dies; not for long, if it cannot."""
        self._watched.wait(_WATCHED_S)

    @property
    def has_bells(self) -> bool:
        """Whether `bell` is set when rank 0 rings, or on rank 0 any other; called on any thread."""
        line = self._line
        return line is not None and line.is_complete

    def ring(self) -> None:
        """Let rank 0, or from rank 0 all others, look at the store; called on any thread."""
        line = self._line
        if line is not None:
            line.ring()

    def lost(self) -> str:
        """Which rank is gone and why; empty if none is."""
        key = f"{self._name}/gone"
        if self._lost_rank:
            if not self._store.check([key]):
                self._store.set(key, self._lost_rank)  # only rank 0 is connected to that rank
        elif self._store.check([key]):
            self._lost_rank = self._store.get(key).decode()
        return self._lost_rank

    def leave(self, error: BaseException) -> None:
        """Tell the other ranks that this one ends with an error, so that none waits for it."""
        self._lost_rank = (
            self._lost_rank or f"rank {self.rank} has ended with {type(error).__name__}"
        )
        try:
            if self._connected.is_set():
                self.lost()
        except RuntimeError:
            log.debug("the key-value store of the ranks is gone")

    def wait(self, keys: tuple[str, ...], left_s: Callable[[], float] = unlimited) -> None:
        """Wait until all `keys` exist; `left_s` returns the seconds left, at most half an hour.

        Raises:
            RankLostError: a rank is gone, or the keys did not exist in time.
        """
        wait, began, pause = Await(keys), time.monotonic(), _SHORTEST_S
        while True:
            for _ in range(2):
                wait.receive(self._guarded(lambda: self.run(wait.next_op())))
                if wait.there:
                    return
            if wait.lost:
                raise RankLostError(wait.lost)
            if left_s() <= 0 or time.monotonic() - began > LONGEST_S:
                msg = f"the other ranks did not come within {time.monotonic() - began:.0f} s"
                raise RankLostError(msg)
            time.sleep(pause)
            pause = min(pause * 1.5, _LONG_S)

    def exchange(
        self, payload: bytes, left_s: Callable[[], float] = unlimited
    ) -> list[bytes] | None:
        """Send the `payload` of each rank to rank 0: all, in rank order; None on the other ranks.

        This is no collective: the other ranks put their bytes in the store and continue. Rank 0
        waits for them, as it would at the barrier at the end of every save.

        Raises:
            RankLostError: as `wait`.
        """
        label = next_key("exchange")
        if self.rank != 0:
            self._guarded(lambda: self._send(f"{label}/{self.rank}", payload))
            return None
        keys = tuple(f"{label}/{rank}" for rank in range(1, self.ranks))
        self.wait(keys, left_s)
        return [payload, *(self._guarded(partial(self._receive, key)) for key in keys)]

    def _send(self, key: str, payload: bytes) -> None:
        """Set `payload` in parts, the first one last, so that all are there when `key` is."""
        parts = [payload[at : at + _PART] for at in range(0, len(payload), _PART)] or [b""]
        for number, part in enumerate(parts[1:], 1):
            self._store.set(f"{key}/{number}", part)
        self._store.set(key, len(parts).to_bytes(_COUNT, "big") + parts[0])

    def _receive(self, key: str) -> bytes:
        first = self._store.get(key)
        count = int.from_bytes(first[:_COUNT], "big")
        keys = [key, *(f"{key}/{number}" for number in range(1, count))]
        found = [first[_COUNT:], *(self._store.get(each) for each in keys[1:])]
        for each in keys:
            self._store.delete_key(each)
        return b"".join(found)

    def close(self) -> None:
        """End the thread and the connection; idempotent."""
        self._closed.set()
        self._thread.join(_JOIN_S)

    def _guarded(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except RuntimeError as error:
            msg = "the key-value store of the process group is gone, and rank 0 with it"
            raise RankLostError(msg) from error

    # the thread

    def _watch_connections(self) -> None:
        """Keep the liveness connection to rank 0, or on rank 0 those to all ranks."""
        connection: LivenessCaller | LivenessListener | None = None
        try:
            self._connect()
            self._line = connection = self._open_connection()
            if connection is not None:
                connection.poll(0.0)
            self._watched.set()
            while connection is not None and not self._closed.is_set():
                connection.poll(_LOOK_S)
                lost = connection.lost()
                if lost is not None:
                    self._lost_rank = self._lost_rank or f"rank {lost} has died"
                    self.lost()
                    break
            self._line = None
            self._closed.wait()
        except (OSError, RuntimeError) as error:
            log.debug("the death of another rank may not be noticed: %s", error)
        finally:
            self._line = None
            self._watched.set()
            if connection is not None:
                connection.close()

    def _connect(self) -> None:
        try:
            self._own = own_client(self._shared)
        except RuntimeError:  # of torch.distributed: the next operation raises it
            self._own = self._shared
        self._connected.set()

    def _open_connection(self) -> LivenessCaller | LivenessListener | None:
        key = f"{self._name}/line"
        if self.rank == 0:
            connection = LivenessListener(self._host, self.ranks, self.bell.set)
            self._store.set(key, connection.address)
            return connection
        while not self._store.check([key]):
            if self._closed.wait(_LONG_S):
                return None
        return LivenessCaller(self._host, self._store.get(key).decode(), self.rank, self.bell.set)


def own_client(store: Any) -> Any:
    """A separate connection to `store`, if it is of a kind with connections."""
    clone = getattr(store, "clone", None)
    return clone() if clone is not None else second_connection(store)


def second_connection(store: Any) -> Any:
    """As `own_client`, for torch before 2.8.

    Loses the prefixes of `store`, which cannot be read; `next_key` makes keys unique without them.
    """
    distributed: Any = torch.distributed
    inner = store
    while isinstance(inner, distributed.PrefixStore):
        inner = inner.underlying_store
    if not isinstance(inner, distributed.TCPStore):
        return store
    return distributed.TCPStore(inner.host, inner.port, is_master=False, wait_for_workers=False)
