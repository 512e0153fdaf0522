"""The lease on one prefix of a store: at most one process may write below it.

Lease `n` is the object `<prefix>/.bt_lightning-lease/<n>`, made by put-if-absent, so only one
process gets each number. The highest number counts. Its holder rewrites it every `BEAT_S` seconds
(the heartbeat). Another process may take the next number when the object has not changed for
`EXPIRES_S` seconds of that process's own clock: no two clocks are compared. It need not wait if the
holder was a process of this machine that has ended, or one that published from the same directory,
since only one process at a time publishes from a directory.

A holder that was suspended may learn late that it lost the lease. So it calls `confirm` before and
after it makes something visible, and deletes what it made too late.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointExistsError, LeaseHeldError, StoreError
from bt_lightning.file_limits import RECORD, parse_json
from bt_lightning.path_layout import lease_folder
from bt_lightning.store.interface import read_any

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.store.interface import Store

BEAT_S: Final = 20.0
EXPIRES_S: Final = 90.0
"""Several heartbeats: a store may be slow, and a machine busy."""
LEAVING_S: Final = 5.0
"""How long a holder that lives is given to end, before it counts as one that trains."""
_LAST_BEAT_S: Final = 5.0
"""How long the last heartbeat is waited for; a later one writes a lease that no longer counts."""
_DIGITS: Final = 12
_NUMBER: Final = re.compile("[0-9]{1,12}")
_NUMBERS: Final = frozenset({"pid", "beat"})


@dataclass(frozen=True, slots=True)
class Holder:
    """The content of a lease object: the process that holds it."""

    token: str
    """Unique to this lease."""
    owner: str
    """Id of the directory that the process publishes from."""
    host: str
    """Host name, for messages."""
    machine: str
    """Boot id and pid namespace, in which `pid` is unique; empty if unknown."""
    pid: int
    started: str
    """Start time of the process in clock ticks since boot: a pid may be reused."""
    beat: int = 0

    def to_bytes(self) -> bytes:
        """JSON."""
        return json.dumps(asdict(self)).encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes) -> Holder | None:
        """Parse the content of a lease object; None if it is damaged or of another version."""
        try:
            fields = parse_json(data, RECORD)
            return cls(**fields) if _is_holder(fields) else None
        except (ValueError, TypeError):
            return None

    @classmethod
    def here(cls, owner: str) -> Holder:
        """This process, with a new token."""
        return cls(
            token=uuid.uuid4().hex,
            owner=owner,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=_started(os.getpid()),
        )

    @property
    def gone(self) -> bool:
        """Whether the holder is known to have ended: it ran on this machine, and is not there."""
        return self._is_here and _started(self.pid) != self.started

    @property
    def lives(self) -> bool:
        """Whether the holder is known to live: it runs on this machine."""
        return self._is_here and _started(self.pid) == self.started

    @property
    def _is_here(self) -> bool:
        return bool(self.machine) and self.machine == _machine()


def _is_holder(fields: object) -> bool:
    """Whether each field has the type that `Holder` gives it."""
    return isinstance(fields, dict) and all(
        type(value) is (int if name in _NUMBERS else str) for name, value in fields.items()
    )


class Lease:
    """One process's side of a lease. `take`, `confirm` and `release` are called by one thread."""

    def __init__(
        self,
        store: Store,
        prefix: str,
        owner: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        beat_s: float = BEAT_S,
    ) -> None:
        """`owner` is the id of the directory that only this process publishes from."""
        self._store = store
        self._prefix = prefix
        self._me = Holder.here(owner)
        self._clock = clock
        self._beat_s = beat_s
        self.previous_token: str | None = None
        """Token of the lease that came just before this process's lease."""
        self.observed_holder: Holder | None = None
        """The holder that the last `take` found."""
        self._number = 0
        """Number of the lease that this process holds; 0 for none."""
        self._lost = False
        self._watched: tuple[int, bytes | None, float] | None = None
        self._ending = threading.Event()
        self._beating: threading.Thread | None = None

    @property
    def token(self) -> str:
        """Token of the lease that this process took last."""
        return self._me.token

    def take(self) -> None:
        """Acquire the lease, or confirm that this process holds it.

        Raises:
            LeaseHeldError: another process holds it. It expires when its object has not changed for
                `EXPIRES_S`; call again.
            StoreError: the store refused.
        """
        if self._number:
            self.confirm()
            return
        number, data = read_lease(self._store, self._prefix)
        self.observed_holder = holder = Holder.from_bytes(data) if data is not None else None
        if number and not self._free(number, data, holder):
            raise LeaseHeldError(self._held_by(holder))
        self._me = Holder.here(self._me.owner)
        try:
            self._store.put_new(self._key(number + 1), self._me.to_bytes())
        except CheckpointExistsError:
            raise LeaseHeldError(self._held_by(None)) from None
        self._number, self._watched = number + 1, None
        self._store.delete([self._key(number)] if number else [])
        self._ending = threading.Event()
        self._beating = threading.Thread(
            target=self._beat, args=[self._ending], daemon=True, name="bt_lightning lease"
        )
        self._beating.start()
        self.previous_token = holder.token if holder is not None else None

    def confirm(self) -> None:
        """Check in the store that this process still holds the lease.

        Raises:
            LeaseHeldError: another process took it, or it was deleted.
            StoreError: the store refused.
        """
        number, data = read_lease(self._store, self._prefix)
        holder = Holder.from_bytes(data) if data is not None else None
        if number == self._number and holder is not None and holder.token == self._me.token:
            return
        self._stop()
        self._number = 0
        if not number:
            msg = (
                f"the lease of {self._store.name}/{self._prefix} was deleted; it will be made again"
            )
            raise LeaseHeldError(msg)
        self._lost = True
        raise LeaseHeldError(self._held_by(holder))

    def release(self) -> None:
        """Delete the lease, if this process holds it; an error of the store is ignored."""
        if self._number:
            self._stop()  # first: a late heartbeat would bring the lease back
            with contextlib.suppress(StoreError):
                self.confirm()
                self._store.delete([self._key(self._number)])
            self._number = 0

    def hand_over(self) -> None:
        """Give the lease up to another process of the same directory, which need not wait.

        The lease object stays in the store, so no third writer can come between. Its token becomes
        the next lease's `previous_token`.
        """
        if self._number:
            self._stop()
            self._number = 0

    def _free(self, number: int, data: bytes | None, holder: Holder | None) -> bool:
        if holder is not None and (
            holder.gone or (holder.owner == self._me.owner and not self._lost)
        ):
            return True  # but a lease lost to the same owner means that the directory was copied
        now = self._clock()
        if self._watched is None or self._watched[:2] != (number, data):
            self._watched = (number, data, now)
        return now - self._watched[2] >= EXPIRES_S

    def _key(self, number: int) -> str:
        return _lease_key(self._prefix, number)

    def _beat(self, ending: threading.Event) -> None:
        """Send heartbeats, on a thread of their own: an upload may outlast `EXPIRES_S`."""
        me, key = self._me, self._key(self._number)
        while not ending.wait(self._beat_s):
            me = replace(me, beat=me.beat + 1)
            with contextlib.suppress(StoreError):  # whether it was in time is for `confirm` to see
                self._store.put(key, me.to_bytes())

    def _stop(self) -> None:
        if self._beating is not None:
            self._ending.set()
            self._beating.join(_LAST_BEAT_S)
            self._beating = None

    def _held_by(self, holder: Holder | None) -> str:
        who = f"the process {holder.pid} on {holder.host}" if holder else "another process"
        return (
            f"{self._store.name}/{self._prefix} is written to by {who}, and only one may. It is"
            f" taken over when that one has shown no life for {EXPIRES_S:.0f} seconds. If both are"
            " meant to run, give them different jobs: BTLightning(job=...) or BT_TRAINING_JOB_ID"
        )


class LeaseWatch:
    """Whether somebody holds a lease, for who is not to take it: from looks at it, one by one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._seen: tuple[int, bytes | None] | None = None
        self._since = 0.0
        self._lives = False

    def is_held(self, number: int, data: bytes | None) -> bool | None:
        """Whether it is held, by what this look saw; None: look again.

        A holder that shows life may be one whose training has died, and which is about to end.
        """
        holder = Holder.from_bytes(data) if data is not None else None
        if not number or (holder is not None and holder.gone):
            return False
        now, seen = self._clock(), (number, data)
        self._lives |= self._seen not in {None, seen} or (holder is not None and holder.lives)
        if seen != self._seen:
            self._seen, self._since = seen, now
        if self._lives and now - self._began >= LEAVING_S:
            return True
        return False if now - self._since >= EXPIRES_S else None


def read_lease(store: Store, prefix: str) -> tuple[int, bytes | None]:
    """Number and content of the lease with the highest number; 0 and None if there is none."""
    names = [info.key.rpartition("/")[2] for info in store.list(lease_folder(prefix))]
    number = max((int(name) for name in names if _NUMBER.fullmatch(name)), default=0)
    return number, read_any(store, _lease_key(prefix, number)) if number else None


def _lease_key(prefix: str, number: int) -> str:
    return f"{lease_folder(prefix)}/{number:0{_DIGITS}}"


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Clock ticks from boot to the start of a process; empty if there is none of that number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in {b"Z", b"X"} else fields[19].decode("ascii")
