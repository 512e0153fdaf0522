"""Copies from CUDA devices into an arena: a stream beside the compute stream, and pinned memory.

Nothing here waits on the host for a device, but `DeviceCopies.wait`, which the copy thread calls.
Where the device has memory to spare, the state is cloned there on the compute stream: such a
snapshot needs no guard, since what follows on that stream comes after the clone. Else the copies
read the state itself, and the guard lets the compute stream wait for them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bt_lightning.snapshot.arena import Arena
    from bt_lightning.snapshot.host_copies import CopySource

log = logging.getLogger(__name__)

_PACKED = 1024 * 1024
"""Bytes: smaller tensors are put together on the device, and come down in one copy."""
_RUN = 64 * 1024 * 1024
_MARGIN = 1024**3
_ROOM = 4
"""A clone leaves three quarters of the free memory to training."""
_PIN_STEP = 256 * 1024 * 1024


class DeviceCopies:
    """The copies of one snapshot from one device. Made and guarded on the training thread."""

    def __init__(self, device: torch.device, stream: torch.cuda.Stream) -> None:
        self.device = device
        self.cloned = False
        """Whether the state may change while the copies are under way."""
        self._stream = stream
        # the copy thread sleeps until it comes, where it would spin on a core that training needs
        self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._held: list[torch.Tensor] = []

    def start(self, sources: list[CopySource], arena: Arena, *, lazy: bool) -> None:
        """Enqueue everything; the host waits for nothing."""
        compute = torch.cuda.current_stream(self.device)
        self.cloned = not lazy or self._has_room(sum(s.tensor.nbytes for s in sources if s.owned))
        with torch.cuda.device(self.device), torch.no_grad():
            frozen = self._frozen(sources)
            began = torch.cuda.Event()  # type: ignore[no-untyped-call]
            began.record(compute)
            self._stream.wait_event(began)
            with torch.cuda.stream(self._stream):
                for run in _runs(frozen):
                    _copy(run, arena)
            self._done.record(self._stream)
        self._held = [source.tensor for source in frozen]  # their memory is read till the end
        if not lazy and not self.cloned:
            self._done.synchronize()  # no room for a clone, and the state may change at once

    def _frozen(self, sources: list[CopySource]) -> list[CopySource]:
        """What the copies read: clones of what may change meanwhile, the rest itself."""
        if self.cloned:
            try:
                return [replace(s, tensor=_plain(s.tensor, copy=True)) for s in sources]
            except torch.cuda.OutOfMemoryError:  # what is free lies in pieces
                self.cloned = False
        return [replace(s, tensor=_plain(s.tensor, copy=not s.owned)) for s in sources]

    def guard(self) -> None:
        """Let what is enqueued from here on come after the copies; the host does not wait."""
        if not self.cloned:
            torch.cuda.current_stream(self.device).wait_event(self._done)

    def wait(self) -> None:
        """Wait until the bytes are in the arena; for the copy thread."""
        with torch.cuda.device(self.device):  # else this thread opens a context on device 0
            self._done.synchronize()
        self._held.clear()

    def _has_room(self, size: int) -> bool:
        free, _ = torch.cuda.mem_get_info(self.device)
        cached = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return _MARGIN + size <= (free + cached) // _ROOM


def _copy(run: list[CopySource], arena: Arena) -> None:
    """Enqueue the copy of tensors that lie behind each other in the arena."""
    parts = [source.tensor.reshape(-1).view(torch.uint8) for source in run]
    data = torch.cat(parts) if len(parts) > 1 else parts[0]
    for start, end in _cuts(run[0].offset, data.numel()):
        target = arena.memory[run[0].offset + start : run[0].offset + end]
        target.copy_(data[start:end], non_blocking=True)


def _plain(tensor: torch.Tensor, *, copy: bool) -> torch.Tensor:
    """Contiguous on its device; a new tensor, on the compute stream, if `copy` or if need be."""
    plain = tensor.resolve_conj().resolve_neg().contiguous()
    return plain.clone() if copy and plain.data_ptr() == tensor.data_ptr() else plain


def _cuts(offset: int, size: int) -> Iterator[tuple[int, int]]:
    """Parts (start, end) of `size` bytes for `offset` of an arena, each within one step of `Pins`.

    A copy must not reach beyond what was registered in one call: such a range is an invalid value.
    Source: CUDA's driver API, cuMemcpyAsync and cuMemHostRegister.
    """
    start = 0
    while start < size:
        end = min(size, start + _PIN_STEP - (offset + start) % _PIN_STEP)
        yield start, end
        start = end


def _runs(sources: list[CopySource]) -> list[list[CopySource]]:
    """Group small tensors that lie behind each other in the arena; large ones stay alone."""
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
class Pins:
    """Arenas whose memory is registered with CUDA; `device` is the one that this process uses."""

    device: torch.device
    _pinned: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def pin(self, arena: Arena) -> None:
        """Register the arena, in steps, all of it or nothing; no copy may be under way.

        Copies work without, but slower, and the host waits for them. In steps, since a call holds
        up every page fault of the process.
        """
        steps = self._pinned.setdefault(arena.index, [])
        for start in range(0, arena.size, _PIN_STEP):
            if arena.abandoned:
                return
            address, size = arena.address + start, min(_PIN_STEP, arena.size - start)
            with torch.cuda.device(self.device):  # else this thread opens a context on device 0
                code = torch.cuda.cudart().cudaHostRegister(address, size, 0)  # type: ignore[no-untyped-call]
                if int(code) != 0:
                    log.warning(
                        "CUDA cannot pin the arena (error %d): saves take longer", int(code)
                    )
                    self.unpin(arena)  # a copy from a pinned to another part is refused
                    return
            steps.append((address, size))

    def unpin(self, arena: Arena) -> None:
        """Let go of what `pin` registered; no copy may be under way."""
        for address, _ in self._pinned.pop(arena.index, ()):
            torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]
