"""XXH3-128 of the bytes of tensors, wherever they lie."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Any, Final

import torch
import xxhash

from bt_lightning.snapshot import device_streams
from bt_lightning.snapshot.copy_threads import copy_threads
from bt_lightning.snapshot.device_streams import enqueued

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from bt_lightning.snapshot.device_streams import Event

_PIECE: Final = 1024 * 1024
"""Bytes between two chances for other threads."""
_STAGED: Final = 32 * 1024 * 1024
"""Bytes that are brought from a device at once."""
_MOST_THREADS: Final = 8


def tensor_digests(
    tensors: Mapping[str, torch.Tensor],
    threads: int = 1,
    written: Mapping[torch.device, Event] | None = None,
) -> dict[str, str]:
    """Name -> digest of a dense tensor's values, in the order of its shape.

    Called on any thread. Tensors may be on any device and of any shape, dtype and strides; those
    that are one are read once. Nothing may write to them meanwhile. `written` is what
    `device_streams.enqueued` returned on the thread that wrote to those on a CUDA device; None if
    that is this thread.
    """
    if written is None:
        written = enqueued(tensors.values())
    places = {name: _place(tensor) for name, tensor in tensors.items()}
    once = {place: tensors[name] for name, place in places.items()}
    on_host = {place: tensor for place, tensor in once.items() if tensor.is_cpu}
    found = {place: _digest(t, written) for place, t in once.items() if place not in on_host}
    if threads > 1 and len(on_host) > 1:
        with copy_threads(threads, "bt_lightning digest") as pool:
            found.update(zip(on_host, pool.map(_digest, on_host.values()), strict=True))
    else:
        found.update({place: _digest(tensor) for place, tensor in on_host.items()})
    return {name: found[place] for name, place in places.items()}


def all_threads() -> int:
    """Threads for what training waits for."""
    return min(_MOST_THREADS, len(os.sched_getaffinity(0)))


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same values in the same memory."""
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def _digest(tensor: torch.Tensor, written: Mapping[torch.device, Event] | None = None) -> str:
    hasher = xxhash.xxh3_128()
    for view in _views(tensor.detach(), written or {}):
        for start in range(0, len(view), _PIECE):
            hasher.update(view[start : start + _PIECE])
    return hasher.hexdigest()


def _views(tensor: torch.Tensor, written: Mapping[torch.device, Event]) -> Iterator[memoryview]:
    """The bytes of a tensor; each view is valid until the next."""
    if not tensor.nbytes:
        return
    if tensor.is_cuda:
        yield from _from_cuda(tensor, written[tensor.device])
        return
    host = _plain(tensor).cpu()
    memory = (ctypes.c_char * host.nbytes).from_address(host.data_ptr())
    yield memoryview(memory).cast("B")


def _from_cuda(tensor: torch.Tensor, written: Event) -> Iterator[memoryview]:
    """By a stream of its own: on that of training, training would wait for each copy."""
    device = tensor.device
    with device_streams.on_device(device):
        stream = device_streams.new_stream(device)
        stream.wait_event(written)
        with device_streams.on_stream(stream):
            content = _plain(tensor).view(-1).view(torch.uint8)
        size = min(_STAGED, content.numel())
        staged = device_streams.pinned_bytes(size)
        for start in range(0, content.numel(), size):
            part = content[start : start + size]
            with device_streams.on_stream(stream):
                staged[: len(part)].copy_(part, non_blocking=True)
            stream.synchronize()
            yield memoryview(staged.numpy().data)[: len(part)]


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.resolve_conj().resolve_neg().contiguous()
