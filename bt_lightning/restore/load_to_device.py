"""Memory for the tensors of a load, on the host or a device, and the transfer of bytes into it."""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch

from bt_lightning.snapshot import device_streams
from bt_lightning.snapshot.safetensors_layout import tensor_bytes
from bt_lightning.store.transfer.fresh_memory import fresh_memory
from bt_lightning.store.transfer.parallel_reads import copy_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Fill = Callable[[Sequence[memoryview]], object]

log = logging.getLogger(__name__)
_ALIGNMENT: Final = 64
"""Bytes, as of all CPU tensors of torch's allocator: elsewhere kernels may add in another order."""


class TensorMemory(Protocol):
    """A kind of memory for tensors. Its methods are called by several threads at once."""

    def empty(
        self, shape: Sequence[int], dtype: torch.dtype, *, large: bool, offset: int = 0
    ) -> torch.Tensor:
        """A contiguous uninitialised tensor; `large` gives it a memory mapping of its own.

        `offset` is that of its bytes in the file that they are read from.
        """

    def flat(self, tensor: torch.Tensor) -> Any:
        """The bytes of a non-empty tensor; slices of it are `targets` of `receive`."""

    def receive(self, targets: Sequence[Any], size: int, fill: Fill) -> None:
        """Let `fill` write `size` bytes into buffers, and bring them to `targets` in order."""


class HostMemory:
    """Host memory: bytes are written directly into the tensors."""

    def empty(
        self, shape: Sequence[int], dtype: torch.dtype, *, large: bool, offset: int = 0
    ) -> torch.Tensor:
        """A CPU tensor; if `large`, its pages are those of the file where its items allow it."""
        if not large:
            return torch.empty(shape, dtype=dtype, device="cpu")
        size = torch.Size(shape).numel() * dtype.itemsize
        phase = 0 if offset % _ALIGNMENT else offset
        memory = torch.frombuffer(fresh_memory(size, phase), dtype=torch.uint8)
        return memory.view(dtype).view(shape)

    def flat(self, tensor: torch.Tensor) -> memoryview:
        """The memory of the tensor."""
        return tensor_bytes(tensor)

    def receive(self, targets: Sequence[memoryview], size: int, fill: Fill) -> None:  # noqa: ARG002
        """Let `fill` write directly into `targets`."""
        fill(targets)


class DeviceMemory:
    """Device memory: bytes are read into pinned buffers and sent while other threads read.

    Each thread has one buffer, as large as the largest range that it received. torch's caching
    allocator keeps the pinned memory for later use.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        cuda = device.type == "cuda"
        # the caller's stream: memory that torch reuses may still be in use by earlier work on it
        self._stream = device_streams.current_stream(device) if cuda else None
        self._local = threading.local()

    def empty(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        *,
        large: bool,  # noqa: ARG002
        offset: int = 0,  # noqa: ARG002
    ) -> torch.Tensor:
        """A tensor on the device, allocated for the caller's stream."""
        with self._on_device():
            return torch.empty(shape, dtype=dtype, device=self._device)

    def flat(self, tensor: torch.Tensor) -> torch.Tensor:
        """A uint8 view of the tensor's bytes."""
        return tensor.reshape(-1).view(torch.uint8)

    def receive(self, targets: Sequence[torch.Tensor | memoryview], size: int, fill: Fill) -> None:
        """Fill this thread's buffer and copy from it to the targets, on the device or the host.

        Returns when the bytes are in the targets.
        """
        buffer = self._buffer(size)
        fill([tensor_bytes(buffer)])
        # the caller may be in inference mode: its tensors can be written only in that mode
        with self._on_device(), torch.inference_mode():
            for target in targets:
                part, buffer = buffer[: len(target)], buffer[len(target) :]
                if isinstance(target, memoryview):
                    copy_bytes(target, tensor_bytes(part))
                else:
                    target.copy_(part, non_blocking=True)
        if self._stream is not None:
            self._stream.synchronize()  # the next call overwrites the buffer

    @contextlib.contextmanager
    def _on_device(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        # the device first: leaving a stream selects the previous device and opens a context there
        with device_streams.on_device(self._device), device_streams.on_stream(self._stream):
            yield

    def _buffer(self, size: int) -> torch.Tensor:
        buffer: torch.Tensor | None = getattr(self._local, "buffer", None)
        if buffer is None or buffer.numel() < size:
            self._local.buffer = None  # release the smaller one first
            buffer = self._local.buffer = self._pinned(size)
        return buffer[:size]

    def _pinned(self, size: int) -> torch.Tensor:
        if self._stream is not None:
            try:
                return device_streams.pinned_bytes(size)
            except RuntimeError as error:
                log.warning("CUDA cannot pin memory, the load takes longer: %s", error)
        return torch.empty(size, dtype=torch.uint8, device="cpu")


HOST: Final = HostMemory()
