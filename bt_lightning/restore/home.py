"""Where the tensors of a checkpoint come to live, and how their bytes get there."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch

from bt_lightning.snapshot.image import tensor_bytes
from bt_lightning.store.parallel import in_huge_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Fill = Callable[[Sequence[memoryview]], object]

log = logging.getLogger(__name__)


class Home(Protocol):
    """A kind of memory. Its methods are called by several threads at once."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype, *, large: bool) -> torch.Tensor:
        """A contiguous tensor to be filled; `large` for one that is worth a mapping of its own."""

    def flat(self, tensor: torch.Tensor) -> Any:
        """All bytes of a tensor that is not empty, to be sliced, and given to `receive`."""

    def receive(self, targets: Sequence[Any], size: int, fill: Fill) -> None:
        """Let `fill` write `size` bytes, which are those of `targets`, one after the other."""


class Host:
    """Memory of this process: bytes arrive where they stay."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype, *, large: bool) -> torch.Tensor:
        """With huge pages if it is large."""
        if not large:
            return torch.empty(shape, dtype=dtype)
        size = torch.Size(shape).numel() * dtype.itemsize
        memory = torch.frombuffer(in_huge_pages(size), dtype=torch.uint8)
        return memory.view(dtype).view(shape)

    def flat(self, tensor: torch.Tensor) -> memoryview:
        """Its memory."""
        return tensor_bytes(tensor)

    def receive(self, targets: Sequence[memoryview], size: int, fill: Fill) -> None:  # noqa: ARG002
        """Straight into them."""
        fill(targets)


class Device:
    """Memory of a device: bytes arrive in pinned buffers, and go on while others arrive.

    A thread has one buffer, as large as the largest range that it received. torch keeps them, for
    whoever pins memory next.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        cuda = device.type == "cuda"
        # that of the caller: what it still runs may use memory that it has given back
        self._stream = torch.cuda.current_stream(device) if cuda else None
        self._local = threading.local()

    def empty(self, shape: Sequence[int], dtype: torch.dtype, *, large: bool) -> torch.Tensor:  # noqa: ARG002
        """On the device."""
        return torch.empty(shape, dtype=dtype, device=self._device)

    def flat(self, tensor: torch.Tensor) -> torch.Tensor:
        """A view of its bytes."""
        return tensor.reshape(-1).view(torch.uint8)

    def receive(self, targets: Sequence[torch.Tensor], size: int, fill: Fill) -> None:
        """Into this thread's buffer, and from there; returns when the device has the bytes."""
        buffer = self._buffer(size)
        fill([tensor_bytes(buffer)])
        with torch.cuda.stream(self._stream):  # of None: nothing
            for target in targets:
                part, buffer = buffer[: target.numel()], buffer[target.numel() :]
                target.copy_(part, non_blocking=True)
        if self._stream is not None:
            self._stream.synchronize()  # the buffer is written again

    def _buffer(self, size: int) -> torch.Tensor:
        found: torch.Tensor | None = getattr(self._local, "buffer", None)
        if found is None or found.numel() < size:
            self._local.buffer = None  # let go of the smaller one first
            found = self._local.buffer = self._pinned(size)
        return found[:size]

    def _pinned(self, size: int) -> torch.Tensor:
        if self._stream is not None:
            try:
                return torch.empty(size, dtype=torch.uint8, pin_memory=True)
            except RuntimeError as error:
                log.warning("CUDA cannot pin memory, the restore takes longer: %s", error)
        return torch.empty(size, dtype=torch.uint8)


HOST: Final = Host()
