"""What one rank knows of the others: their words in the process group's key-value store, and ends.

The store is asked through a connection of its own, and nothing here waits inside of it: a wait
holds the connection, and what other threads have to say through it must not wait for that (nor for
a collective of torch that waits in the store). So a training thread that waits here hears signals,
and of a rank that is gone.
"""

from __future__ import annotations

import logging
import threading
import time
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
"""As long as torch lets a collective take: a rank may be that much slower than the others."""
_SHORTEST_S, _LONG_S = 0.0005, 0.02
_LOOK_S = 0.2
_MEET_S = 60.0
_JOIN_S = 5.0
"""More than a look and a call take; who still connects then is left alone."""


class RankExchange:
    """One a fit, made by every rank at the same moment. Of more than one rank.

    All methods but `run` and `lost` are the training thread's.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.rank, self.ranks = ranks.rank, ranks.world_size
        self._name = next_key("peers")
        self._shared = process_group_store()
        self._own: Any = None
        self._connected = threading.Event()
        self._host = ranks.host
        self._gone = ""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="bt_lightning peers")
        self._thread.start()

    @property
    def _store(self) -> Any:
        if not self._connected.wait(_MEET_S):  # not in the connecting itself, which is deaf
            msg = f"the key-value store of the process group did not answer for {_MEET_S:.0f} s"
            raise RankLostError(msg)
        return self._own

    def run(self, op: Op) -> Answer:
        """One operation of the store; raises RuntimeError when the store is gone."""
        if isinstance(op, Set):
            self._store.set(op.key, op.value)
            return None
        if isinstance(op, Check):
            return bool(self._store.check(list(op.keys)))
        if isinstance(op, Get):
            return str(self._store.get(op.key).decode())
        return self.lost()

    def lost(self) -> str:
        """Which rank is gone, and why; empty while none is."""
        key = f"{self._name}/gone"
        if self._gone:
            if not self._store.check([key]):
                self._store.set(key, self._gone)  # for those who have no line to that rank
        elif self._store.check([key]):
            self._gone = self._store.get(key).decode()
        return self._gone

    def leave(self, error: BaseException) -> None:
        """This rank ends by an error: nobody shall wait for it."""
        self._gone = self._gone or f"rank {self.rank} has ended with {type(error).__name__}"
        try:
            if self._connected.is_set():
                self.lost()
        except RuntimeError:
            log.debug("the key-value store of the ranks is gone")

    def wait(self, keys: tuple[str, ...], left_s: Callable[[], float] = unlimited) -> None:
        """Wait until all `keys` are there; `left_s` says how long that may take from now on.

        Raises:
            RankLostError: a rank is gone, or they did not come in that time, or in half an hour.
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
        """Bring one `payload` of each rank to rank 0, in rank order; None on the other ranks.

        No collective: the others leave their bytes in the store and go on; rank 0 waits for them,
        as it would at the barrier that ends every save.

        Raises:
            RankLostError: as `wait`.
        """
        label = next_key("exchange")
        if self.rank != 0:
            self._guarded(lambda: self._store.set(f"{label}/{self.rank}", payload))
            return None
        keys = tuple(f"{label}/{rank}" for rank in range(1, self.ranks))
        self.wait(keys, left_s)
        payloads = [payload, *(self._store.get(key) for key in keys)]
        for key in keys:
            self._store.delete_key(key)
        return payloads

    def close(self) -> None:
        """The fit of this rank is over; idempotent."""
        self._closed.set()
        self._thread.join(_JOIN_S)

    def _guarded(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except RuntimeError as error:
            msg = "the key-value store of the process group is gone, and rank 0 with it"
            raise RankLostError(msg) from error

    # the thread

    def _watch(self) -> None:
        """Hold the line to rank 0, or rank 0's to all."""
        line: LivenessCaller | LivenessListener | None = None
        try:
            self._connect()
            line = self._line()
            while line is not None and not self._closed.is_set():
                line.look(_LOOK_S)
                lost = line.lost()
                if lost is not None:
                    self._gone = self._gone or f"rank {lost} has died"
                    self.lost()
                    break
            self._closed.wait()
        except (OSError, RuntimeError) as error:
            log.debug("the death of another rank may not be noticed: %s", error)
        finally:
            if line is not None:
                line.close()

    def _connect(self) -> None:
        try:
            self._own = own_client(self._shared)
        except RuntimeError:  # of torch.distributed: whoever asks hears of it
            self._own = self._shared
        self._connected.set()

    def _line(self) -> LivenessCaller | LivenessListener | None:
        key = f"{self._name}/line"
        if self.rank == 0:
            line = LivenessListener(self._host, self.ranks)
            self._store.set(key, line.address)
            return line
        while not self._store.check([key]):
            if self._closed.wait(_LOOK_S):
                return None
        return LivenessCaller(self._host, self._store.get(key).decode(), self.rank)


def own_client(store: Any) -> Any:
    """Another connection to `store`, where its kind has connections."""
    clone = getattr(store, "clone", None)
    return clone() if clone is not None else second_connection(store)


def second_connection(store: Any) -> Any:
    """As `own_client`, for torch before 2.8.

    Without the prefixes of `store`, which cannot be read: names of meetings are of one fit only.
    """
    distributed: Any = torch.distributed
    inner = store
    while isinstance(inner, distributed.PrefixStore):
        inner = inner.underlying_store
    if not isinstance(inner, distributed.TCPStore):
        return store
    return distributed.TCPStore(inner.host, inner.port, is_master=False, wait_for_workers=False)
