"""Copies from CUDA devices into an arena, on a separate stream and into pinned memory.

Only `DeviceCopies.wait`, which the copy thread calls, waits on the host for a device. If the device
has enough free memory, the state is cloned there on the compute stream first; such a snapshot needs
no guard, since later work on that stream runs after the clone. Otherwise the copies read the state
itself, and the guard makes the compute stream wait for them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from bt_lightning.snapshot import device_streams

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bt_lightning.snapshot.arena import Arena
    from bt_lightning.snapshot.device_sources import CopySource

log = logging.getLogger(__name__)

_PACKED = 1024 * 1024
"""Bytes: smaller tensors are concatenated on the device and transferred in one copy."""
_RUN = 64 * 1024 * 1024
_MARGIN = 1024**3
_ROOM = 4
"""A clone leaves three quarters of the free memory to training."""
_PIN_STEP = 256 * 1024 * 1024


class DeviceCopies:
    """The copies of one snapshot from one device.

    `start` and `guard` are called on the training thread, `wait` on the copy thread.
    """

    def __init__(self, device: torch.device, stream: device_streams.Stream) -> None:
        self.device = device
        self.cloned = False
        """Whether the copies read a clone, so that the state may change meanwhile."""
        self._stream = stream
        # blocking: the copy thread sleeps instead of spinning on a core that training needs
        self._done = device_streams.new_event(blocking=True)
        self._held: list[torch.Tensor] = []

    def start(self, sources: list[CopySource], arena: Arena, *, lazy: bool) -> None:
        """Enqueue all copies; the host does not wait, except for an eager copy without a clone.

        After an error, `wait` waits for those that were enqueued.
        """
        compute = device_streams.current_stream(self.device)
        self.cloned = not lazy or self._has_room(sum(s.tensor.nbytes for s in sources if s.owned))
        with device_streams.on_device(self.device), torch.no_grad():
            frozen = self._frozen(sources)
            self._held = [source.tensor for source in frozen]  # keeps their memory until `wait`
            began = device_streams.new_event()
            began.record(compute)
            self._stream.wait_event(began)
            try:
                with device_streams.on_stream(self._stream):
                    for run in _runs(frozen):
                        _copy(run, arena)
            finally:
                self._done.record(self._stream)
        if not lazy and not self.cloned:
            self._done.synchronize()  # no memory for a clone, and the state may change at once

    def _frozen(self, sources: list[CopySource]) -> list[CopySource]:
        """The tensors that the copies read: clones of those that may change meanwhile."""
        if self.cloned:
            try:
                return [replace(s, tensor=_plain(s.tensor, copy=not s.constant)) for s in sources]
            except device_streams.DeviceMemoryError:  # the free memory is fragmented
                self.cloned = False
        return [replace(s, tensor=_plain(s.tensor, copy=not s.owned)) for s in sources]

    def guard(self) -> None:
        """Make the compute stream wait for the copies; the host does not wait."""
        if not self.cloned:
            device_streams.current_stream(self.device).wait_event(self._done)

    def wait(self) -> None:
        """Wait until the bytes are in the arena; called on the copy thread."""
        with device_streams.on_device(self.device):
            self._done.synchronize()
        self._held.clear()

    def _has_room(self, size: int) -> bool:
        return _MARGIN + size <= device_streams.free_bytes(self.device) // _ROOM


def _copy(run: list[CopySource], arena: Arena) -> None:
    """Enqueue the copy of tensors that are adjacent in the arena."""
    parts = [source.tensor.reshape(-1).view(torch.uint8) for source in run]
    data = torch.cat(parts) if len(parts) > 1 else parts[0]
    for start, end in _cuts(run[0].offset, data.numel()):
        target = arena.memory[run[0].offset + start : run[0].offset + end]
        target.copy_(data[start:end], non_blocking=True)


def _plain(tensor: torch.Tensor, *, copy: bool) -> torch.Tensor:
    """The tensor contiguous on its device; cloned on the compute stream if `copy` or necessary."""
    plain = tensor.resolve_conj().resolve_neg().contiguous()
    return plain.clone() if copy and plain.data_ptr() == tensor.data_ptr() else plain


def _cuts(offset: int, size: int) -> Iterator[tuple[int, int]]:
    """Split `size` bytes at `offset` of an arena into (start, end) within one registered step.

    CUDA rejects a copy whose range crosses the memory of two cudaHostRegister calls. Source: CUDA's
    driver API, cuMemcpyAsync and cuMemHostRegister.
    """
    start = 0
    while start < size:
        end = min(size, start + _PIN_STEP - (offset + start) % _PIN_STEP)
        yield start, end
        start = end


def _runs(sources: list[CopySource]) -> list[list[CopySource]]:
    """Group small tensors that are adjacent in the arena; each large one is a group by itself."""
    runs: list[list[CopySource]] = []
    end, length = -1, 0
    for source in sorted(sources, key=lambda source: source.offset):
        size = source.tensor.nbytes
        if size == 0:
            continue
        if source.offset == end and size < _PACKED and length + size <= _RUN:
            runs[-1].append(source)
            length += size
        else:
            runs.append([source])
            length = size if size < _PACKED else _RUN
        end = source.offset + size
    return runs


@dataclass
class PinnedArenas:
    """The arenas whose memory is registered with CUDA as pinned, for this process's `device`."""

    device: torch.device
    _pinned: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def pin(self, arena: Arena) -> None:
        """Register the whole arena or nothing; the caller makes sure no copy is in progress.

        Copies to unregistered memory work but are slower and block the host. Registers in steps,
        since each call blocks all page faults of the process.
        """
        steps = self._pinned.setdefault(arena.index, [])
        for start in range(0, arena.size, _PIN_STEP):
            if arena.abandoned:
                return
            address, size = arena.address + start, min(_PIN_STEP, arena.size - start)
            code = device_streams.register_host(self.device, address, size)
            if code != 0:
                log.warning("CUDA cannot pin the arena (error %d): saves take longer", code)
                self.unpin(arena)  # CUDA rejects a copy across registered and other memory
                return
            steps.append((address, size))

    def unpin(self, arena: Arena) -> None:
        """Unregister the arena; the caller makes sure no copy is in progress."""
        for address, _ in self._pinned.pop(arena.index, ()):
            device_streams.unregister_host(address)
