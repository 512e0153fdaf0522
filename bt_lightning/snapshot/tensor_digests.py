"""XXH3-128 of the bytes of tensors, wherever they lie."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Any, Final

import torch
import xxhash

from bt_lightning.snapshot.copy_threads import copy_threads

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PIECE: Final = 1024 * 1024
"""Bytes between two chances for other threads."""
_STAGED: Final = 32 * 1024 * 1024
"""Bytes that are brought from a device at once."""
_MOST_THREADS: Final = 8


def tensor_digests(tensors: Mapping[str, torch.Tensor], threads: int = 1) -> dict[str, str]:
    """Name -> digest of a dense tensor's values, in the order of its shape.

    Called on any thread. Tensors may be on any device and of any shape, dtype and strides; those
    that are one are read once. Nothing may write to them meanwhile.
    """
    places = {name: _place(tensor) for name, tensor in tensors.items()}
    once = {place: tensors[name] for name, place in places.items()}
    on_host = {place: tensor for place, tensor in once.items() if tensor.is_cpu}
    found = {place: _digest(t) for place, t in once.items() if place not in on_host}
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


def _digest(tensor: torch.Tensor) -> str:
    hasher = xxhash.xxh3_128()
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    for view in _views(plain):
        for start in range(0, len(view), _PIECE):
            hasher.update(view[start : start + _PIECE])
    return hasher.hexdigest()


def _views(tensor: torch.Tensor) -> Iterator[memoryview]:
    """The bytes of a contiguous tensor; each view is valid until the next."""
    if not tensor.nbytes:
        return
    if tensor.is_cuda:
        yield from _from_cuda(tensor.view(-1).view(torch.uint8))
        return
    host = tensor.cpu()
    memory = (ctypes.c_char * host.nbytes).from_address(host.data_ptr())
    yield memoryview(memory).cast("B")


def _from_cuda(content: torch.Tensor) -> Iterator[memoryview]:
    """By a stream of its own: on the default one, training would wait for each copy."""
    device = content.device
    with torch.cuda.device(device):
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.default_stream(device))  # whatever was written last
        size = min(_STAGED, content.numel())
        staged = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        for start in range(0, content.numel(), size):
            part = content[start : start + size]
            with torch.cuda.stream(stream):
                staged[: len(part)].copy_(part, non_blocking=True)
            stream.synchronize()
            yield memoryview(staged.numpy().data)[: len(part)]
