"""The copy of one snapshot into an arena, and the check that the state did not change meanwhile.

State that a forward pass may change is in the arena when `Capture.start` returns. State that only
optimizers change is copied later, by the copy thread (CPU tensors) or on a stream (CUDA tensors);
`Capture.guard` makes the training thread wait for it before an optimizer step.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from bt_lightning.errors import SaveTimeoutError
from bt_lightning.snapshot import device_streams
from bt_lightning.snapshot.cuda_copies import DeviceCopies
from bt_lightning.snapshot.host_copies import write_counts

if TYPE_CHECKING:
    import torch

    from bt_lightning.snapshot.arena import Arena
    from bt_lightning.snapshot.device_sources import CopySource
    from bt_lightning.snapshot.host_copies import Copies, HostCopier
    from bt_lightning.snapshot.save_record import SnapshotKind


_COPY_S = 3600.0


class Streams:
    """The copy streams of this process, one for each CUDA device."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, device_streams.Stream] = {}

    def of(self, device: torch.device) -> device_streams.Stream:
        """The stream for `device`, created at the first call."""
        if device not in self._streams:
            self._streams[device] = device_streams.new_stream(device)
        return self._streams[device]


class Capture:
    """The copies of one save.

    `start` and `guard` are called on the training thread, `finish` on the copy thread.
    """

    def __init__(self, copies: list[Copies], copier: HostCopier, *, lazy: bool) -> None:
        self.torn = False
        """Whether a tensor changed while it was copied: the snapshot mixes two steps."""
        self.ended_at = 0.0
        """`time.perf_counter()` at the end of the copy."""
        self.fixed = copies[0]
        """The copies of the tensors that are the same objects at each save."""
        self._copier = copier
        self._lazy = lazy
        self._copied_later = [part.lazy for part in copies] if lazy else []
        self._copied_at_once = [part.eager for part in copies]
        if not lazy:
            self._copied_at_once += [part.lazy for part in copies]
        self._sources = [source for part in copies for source in part.device]
        self._devices: list[DeviceCopies] = []
        self._checked: list[list[torch.Tensor]] = []
        self._start_versions: list[list[int]] = []
        self._fixed_versions: list[list[int]] = []
        self._is_guarded = not lazy
        self._done = threading.Event()

    @property
    def kind(self) -> SnapshotKind:
        """How large tensors are copied: `lazy`, `eager`, or `clone` (first on the device)."""
        if self._devices and all(device.cloned for device in self._devices):
            return "clone"
        return "lazy" if self._lazy else "eager"

    def versions_changed(self) -> bool:
        """Whether a version counter changed since `start`; fused optimizers do not count."""
        return self.fixed.versions() != self._fixed_versions

    @property
    def done(self) -> bool:
        """Whether every byte is in the arena."""
        return self._done.is_set()

    def start(self, arena: Arena, streams: Streams) -> None:
        """Copy what a forward pass may change, and start the copies on CUDA streams."""
        try:
            self._start(arena, streams)
        except BaseException:
            self._wait_for_devices()  # or they would write to the arena of the next save
            raise

    def _start(self, arena: Arena, streams: Streams) -> None:
        groups: dict[torch.device, list[CopySource]] = {}
        for source in self._sources:
            groups.setdefault(source.tensor.device, []).append(source)
        for device, sources in groups.items():
            copies = DeviceCopies(device, streams.of(device))
            self._devices.append(copies)
            copies.start(sources, arena, lazy=self._lazy)
            if not copies.cloned:
                owned = [source for source in sources if source.owned]
                self._checked.append([each for source in owned for each in source.counted])
        self._checked += [batch.counted for batch in self._copied_later]
        self._fixed_versions = self.fixed.versions()
        # thousands of tensors: their versions are not read twice
        counted = {id(self.fixed.lazy.counted): self._fixed_versions[0]}
        self._start_versions = [
            counted.get(id(each)) or write_counts(each) for each in self._checked
        ]
        self._copier.run(self._copied_at_once)

    def finish(self) -> None:
        """Copy the remaining tensors and wait for the CUDA streams."""
        whole = False
        try:
            try:
                self._copier.run(self._copied_later)
            finally:
                self._wait_for_devices()
            # after the guard, the next optimizer step may already have changed the tensors
            whole = self._versions_unchanged() or self._is_guarded
        finally:
            self.torn = self.torn or not whole  # no other save may reuse an incomplete copy
            self.ended_at = time.perf_counter()
            self._done.set()

    def _wait_for_devices(self) -> None:
        for device in self._devices:
            device.wait()

    def _versions_unchanged(self) -> bool:
        return list(map(write_counts, self._checked)) == self._start_versions

    def guard(self) -> None:
        """Return when the state may change: waits for host copies, not for a device.

        Called before each step until `done`: a later one may be on another stream.

        Raises:
            SaveTimeoutError: a host copy took longer than an hour.
        """
        if self._done.is_set():
            return
        for device in self._devices:
            device.guard()
        if self._devices and not self._is_guarded:
            self.torn = not self._versions_unchanged()
            self._is_guarded = True
        in_progress = any(batch.tensors for batch in self._copied_later)
        if in_progress and not self._done.wait(_COPY_S):
            msg = f"a copy in memory has not ended within {_COPY_S / 60:.0f} minutes"
            raise SaveTimeoutError(msg)
