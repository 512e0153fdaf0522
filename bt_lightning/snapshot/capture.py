"""One snapshot on its way into an arena, and whether the state held still meanwhile.

Made on the training thread; what forward may change is in the arena when `start` returns. The rest
is copied by the copy thread (CPU) or a stream (CUDA), until the guard needs it to be over.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import torch

from bt_lightning.errors import SaveTimeoutError
from bt_lightning.snapshot.cuda_copies import DeviceCopies
from bt_lightning.snapshot.host_copies import write_counts

if TYPE_CHECKING:
    from bt_lightning.snapshot.arena import Arena
    from bt_lightning.snapshot.host_copies import Copies, CopySource, HostCopier
    from bt_lightning.snapshot.save_record import SnapshotKind


_COPY_S = 3600.0


class Streams:
    """One copy stream for each device of this process."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def of(self, device: torch.device) -> torch.cuda.Stream:
        """The stream for `device`, made at the first call."""
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return self._streams[device]


class Capture:
    """The copies of one save. `start` and `guard`: training thread; `finish`: copy thread."""

    def __init__(self, copies: list[Copies], copier: HostCopier, *, lazy: bool) -> None:
        self.torn = False
        """Something changed while it was copied: these bytes belong to no one step."""
        self.ended_at = 0.0
        """`time.perf_counter()` at the end of the copy."""
        self.fixed = copies[0]
        """The copies of what is the same at each save."""
        self._copier = copier
        self._lazy = lazy
        self._host = [part.lazy for part in copies] if lazy else []
        self._now = [part.eager for part in copies]
        if not lazy:
            self._now += [part.lazy for part in copies]
        self._sources = [source for part in copies for source in part.device]
        self._devices: list[DeviceCopies] = []
        self._watched: list[list[torch.Tensor]] = []
        self._before: list[list[int]] = []
        self._versions: list[list[int]] = []
        self._guarded = not lazy
        self._done = threading.Event()

    @property
    def kind(self) -> SnapshotKind:
        """How the large tensors are copied: `lazy`, `eager` or `clone`."""
        if self._devices and all(device.cloned for device in self._devices):
            return "clone"
        return "lazy" if self._lazy else "eager"

    def moved(self) -> bool:
        """Whether autograd knows of a change since the start; fused optimizers tell it nothing."""
        return self.fixed.versions() != self._versions

    @property
    def done(self) -> bool:
        """Whether every byte is in the arena."""
        return self._done.is_set()

    def start(self, arena: Arena, streams: Streams) -> None:
        """Copy what cannot wait, and let the rest begin."""
        groups: dict[torch.device, list[CopySource]] = {}
        for source in self._sources:
            groups.setdefault(source.tensor.device, []).append(source)
        for device, sources in groups.items():
            copies = DeviceCopies(device, streams.of(device))
            copies.start(sources, arena, lazy=self._lazy)
            self._devices.append(copies)
            if not copies.cloned:
                self._watched.append([source.tensor for source in sources if source.owned])
        self._watched += [batch.held for batch in self._host]
        self._versions = self.fixed.versions()
        counted = {id(self.fixed.lazy.held): self._versions[0]}  # thousands: not twice
        self._before = [counted.get(id(held)) or write_counts(held) for held in self._watched]
        self._copier.run(self._now)

    def finish(self) -> None:
        """Copy the rest, and wait for the devices."""
        whole = False
        try:
            self._copier.run(self._host)
            for device in self._devices:
                device.wait()
            # once guarded, the step that follows may have changed them since
            whole = self._held_still() or self._guarded
        finally:
            self.torn = self.torn or not whole  # no other save may share what is not there
            self.ended_at = time.perf_counter()
            self._done.set()

    def _held_still(self) -> bool:
        return list(map(write_counts, self._watched)) == self._before

    def guard(self) -> None:
        """Return when the state may change: waits for copies on the host, not for a device."""
        if self._done.is_set():
            return
        if self._devices and not self._guarded:
            for device in self._devices:
                device.guard()
            self.torn = not self._held_still()
            self._guarded = True
        under_way = any(batch.held for batch in self._host)
        if under_way and not self._done.wait(_COPY_S):
            msg = f"a copy in memory has not ended within {_COPY_S / 60:.0f} minutes"
            raise SaveTimeoutError(msg)
