"""Each call of a stream, an event or pinned memory that snapshots and loads make, on CUDA devices.

No other module names one of them. So tests put streams in their place whose work is done in any
order that the recorded events and waits allow.

These are CUDA's own classes: `torch.Event` takes `blocking` and ignores it, so that the copy thread
would spin, and `torch.accelerator` needs torch 2.6. Source: torch/csrc/Event.cpp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

Stream = torch.cuda.Stream
Event = torch.cuda.Event
DeviceMemoryError: Final = torch.cuda.OutOfMemoryError


def on_device(device: torch.device) -> AbstractContextManager[None]:
    """Select the device; otherwise a call on another thread opens a context on device 0."""
    return torch.cuda.device(device)


def on_stream(stream: Stream) -> AbstractContextManager[None]:
    """Let this thread enqueue kernels and copies on `stream`, and allocate memory for it."""
    return torch.cuda.stream(stream)


def new_stream(device: torch.device) -> Stream:
    """A stream of the device that waits for no other one."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def current_stream(device: torch.device) -> Stream:
    """The stream of this thread."""
    return torch.cuda.current_stream(device)


def new_event(*, blocking: bool = False) -> Event:
    """An event; if `blocking`, a thread that waits for it sleeps instead of spinning."""
    return torch.cuda.Event(blocking=blocking)  # type: ignore[no-untyped-call]


def enqueued(tensors: Iterable[torch.Tensor]) -> dict[torch.device, Event]:
    """For each CUDA device of the tensors, an event behind all that this thread enqueued there.

    Whoever reads the tensors on another thread or stream waits for it.
    """
    events = {}
    for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
        with on_device(device):
            events[device] = new_event()
            events[device].record(current_stream(device))
    return events


def free_bytes(device: torch.device) -> int:
    """Bytes of the device's memory that are free, or cached by torch."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def register_host(device: torch.device, address: int, size: int) -> int:
    """Pin host memory; 0, or the error's code of CUDA."""
    with on_device(device):
        return int(torch.cuda.cudart().cudaHostRegister(address, size, 0))  # type: ignore[no-untyped-call]


def unregister_host(address: int) -> None:
    """Undo `register_host`; the caller makes sure that no copy is in progress."""
    torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]


def pinned_bytes(size: int) -> torch.Tensor:
    """Pinned host memory, uint8.

    Raises:
        RuntimeError: CUDA cannot pin as much.
    """
    return torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)
