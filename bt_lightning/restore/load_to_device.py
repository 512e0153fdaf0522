"""Where the tensors of a checkpoint come to live, and how their bytes get there."""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch

from bt_lightning.snapshot.safetensors_layout import tensor_bytes
from bt_lightning.store.transfer.parallel_reads import copy_bytes, in_huge_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Fill = Callable[[Sequence[memoryview]], object]

log = logging.getLogger(__name__)


class TensorMemory(Protocol):
    """A kind of memory. Its methods are called by several threads at once."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype, *, large: bool) -> torch.Tensor:
        """A contiguous tensor to be filled; `large` for one that is worth a mapping of its own."""

    def flat(self, tensor: torch.Tensor) -> Any:
        """All bytes of a tensor that is not empty, to be sliced, and given to `receive`."""

    def receive(self, targets: Sequence[Any], size: int, fill: Fill) -> None:
        """Let `fill` write `size` bytes, which are those of `targets`, one after the other."""


class HostMemory:
    """Memory of this process: bytes arrive where they stay."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype, *, large: bool) -> torch.Tensor:
        """With huge pages if it is large."""
        if not large:
            return torch.empty(shape, dtype=dtype, device="cpu")
        size = torch.Size(shape).numel() * dtype.itemsize
        memory = torch.frombuffer(in_huge_pages(size), dtype=torch.uint8)
        return memory.view(dtype).view(shape)

    def flat(self, tensor: torch.Tensor) -> memoryview:
        """Its memory."""
        return tensor_bytes(tensor)

    def receive(self, targets: Sequence[memoryview], size: int, fill: Fill) -> None:  # noqa: ARG002
        """Straight into them."""
        fill(targets)


class DeviceMemory:
    """Memory of a device: bytes arrive in pinned buffers, and go on while others arrive.

    A thread has one buffer, as large as the largest range that it received. torch keeps them, for
    whoever pins memory next.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        cuda = device.type == "cuda"
        # the caller's, whose order the allocator relies on: what it has given back may be in use
        self._stream = torch.cuda.current_stream(device) if cuda else None
        self._local = threading.local()

    def empty(self, shape: Sequence[int], dtype: torch.dtype, *, large: bool) -> torch.Tensor:  # noqa: ARG002
        """On the device, of the memory of the caller's stream."""
        with self._there():
            return torch.empty(shape, dtype=dtype, device=self._device)

    def flat(self, tensor: torch.Tensor) -> torch.Tensor:
        """A view of its bytes."""
        return tensor.reshape(-1).view(torch.uint8)

    def receive(self, targets: Sequence[torch.Tensor | memoryview], size: int, fill: Fill) -> None:
        """Into this thread's buffer, and from there, to the host too; returns when all is there."""
        buffer = self._buffer(size)
        fill([tensor_bytes(buffer)])
        # where the caller makes inference tensors, other threads could not write them
        with self._there(), torch.inference_mode():
            for target in targets:
                part, buffer = buffer[: len(target)], buffer[len(target) :]
                if isinstance(target, memoryview):
                    copy_bytes(target, tensor_bytes(part))
                else:
                    target.copy_(part, non_blocking=True)
        if self._stream is not None:
            self._stream.synchronize()  # the buffer is written again

    @contextlib.contextmanager
    def _there(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        # the device first: to leave a stream selects the one before, and opens a context there
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            yield

    def _buffer(self, size: int) -> torch.Tensor:
        found: torch.Tensor | None = getattr(self._local, "buffer", None)
        if found is None or found.numel() < size:
            self._local.buffer = None  # let go of the smaller one first
            found = self._local.buffer = self._pinned(size)
        return found[:size]

    def _pinned(self, size: int) -> torch.Tensor:
        if self._stream is not None:
            try:
                return torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)
            except RuntimeError as error:
                log.warning("CUDA cannot pin memory, the restore takes longer: %s", error)
        return torch.empty(size, dtype=torch.uint8, device="cpu")


HOST: Final = HostMemory()
