"""Copies of CPU tensors into an arena: which must be done at once, and which during training."""

from __future__ import annotations

import ctypes
import operator
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from bt_lightning.snapshot.copy_threads import copy_threads
from bt_lightning.snapshot.device_sources import CopySource, constant_sources, split_gaps
from bt_lightning.snapshot.local_shards import is_dtensor, local_part
from bt_lightning.snapshot.small_copies import SmallCopies
from bt_lightning.snapshot.tensor_address import tensor_address

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from bt_lightning.snapshot.arena import Arena
    from bt_lightning.snapshot.arena_layout import ArenaLayout
    from bt_lightning.snapshot.small_copies import Piece
    from bt_lightning.snapshot.state_files import Snapshot
    from bt_lightning.snapshot.tensor_address import TensorAddress

_BIG = 256 * 1024
"""Bytes: smaller copies are grouped instead of being tasks of their own."""
_PIECE = 192 * 1024 * 1024
"""Minimum bytes of a part of a large tensor: for less, memmove(3) writes through the cache, at half
the speed on machines with a large one."""
_MOST_THREADS = 4
_FEW_BYTES = 1024 * 1024
_VERSION = operator.attrgetter("_version")


@dataclass(eq=False)
class HostCopies:
    """Copies of CPU tensors, planned once and run at any number of saves.

    Pieces are (target address, source address, bytes).
    """

    large: list[Piece] = field(default_factory=list)
    small: list[Piece] = field(default_factory=list)
    targets: list[torch.Tensor] = field(default_factory=list)
    """Views of the arena for the tensors in `sources`."""
    sources: list[torch.Tensor] = field(default_factory=list)
    """Tensors that are not contiguous."""
    tensors: list[torch.Tensor] = field(default_factory=list)
    """All tensors: keeps their memory."""
    counted: list[torch.Tensor] = field(default_factory=list)
    """Tensors whose version counters show changes: these, and DTensors that they are part of."""
    constants: list[bytes] = field(default_factory=list)
    """Bytes that no tensor has: keeps their memory."""
    _arena: Arena | None = None
    _small_copies: SmallCopies | None = None

    def add(self, arena: Arena, offset: int, address: TensorAddress) -> None:
        """Plan the copy of a tensor to `offset` of the arena."""
        _, tensor, _, source, size, plain, whole = address
        if size == 0:
            return
        self.tensors.append(tensor)
        self.counted.append(tensor)
        if whole is not None:
            self.counted.append(whole)
        if not plain:
            self.targets.append(arena.view(offset, tensor))
            self.sources.append(tensor)
            return
        target = arena.address + offset
        if size < _BIG:
            self.small.append((target, source, size))
            self._arena, self._small_copies = arena, None
            return
        length = -(-size // max(1, size // _PIECE))
        for start in range(0, size, length):
            self.large.append((target + start, source + start, min(length, size - start)))

    def add_bytes(self, arena: Arena, offset: int, content: bytes) -> None:
        """Plan the copy of bytes that never change to `offset` of the arena."""
        self.constants.append(content)
        source = ctypes.cast(ctypes.c_char_p(content), ctypes.c_void_p).value
        assert source is not None
        self.small.append((arena.address + offset, source, len(content)))
        self._arena, self._small_copies = arena, None

    def copy_small(self) -> None:
        """Copy the small contiguous tensors."""
        if self._arena is None:
            return
        if self._small_copies is None:
            self._small_copies = SmallCopies(self.small, self._arena.address)
        self._small_copies.copy(self._arena.descriptor)

    def already_copied(self) -> bool:
        """Whether the arena has the same bytes already; compares few small tensors only."""
        few = not self.large and sum(tensor.nbytes for tensor in self.tensors) < _FEW_BYTES
        return (
            few
            and all(ctypes.string_at(t, n) == ctypes.string_at(h, n) for t, h, n in self.small)
            and all(map(_equal_bits, self.targets, self.sources))
        )


@dataclass(eq=False)
class Copies:
    """All copies of some tensors, by kind."""

    lazy: HostCopies = field(default_factory=HostCopies)
    """CPU tensors that only an optimizer changes: may be copied during forward and backward."""
    eager: HostCopies = field(default_factory=HostCopies)
    device: list[CopySource] = field(default_factory=list)

    def add(
        self, arena: Arena, offset: int, address: TensorAddress, owned: Collection[int]
    ) -> None:
        """Plan the copy of one tensor; `owned` are addresses of storages that optimizers change."""
        tensor, is_owned = address.tensor, address.storage in owned
        if address.plain:  # on the CPU
            (self.lazy if is_owned else self.eager).add(arena, offset, address)
        elif tensor.is_cuda:
            self.device.append(CopySource(offset, tensor, is_owned, whole=address.whole))
        else:
            lazy = is_owned and tensor.is_cpu
            (self.lazy if lazy else self.eager).add(arena, offset, address)

    def add_gaps(self, arena: Arena, start: int, gaps: Sequence[tuple[int, bytes]]) -> None:
        """Plan the copy of the constant bytes between the tensors of the file at `start`.

        They are copied with the tensors: what is adjacent in the arena takes few calls.
        """
        on_devices, others = split_gaps(self.device, start, gaps)
        for device, between in on_devices.items():
            self.device += constant_sources(between, start, device)
        host = self.lazy if self.lazy.tensors else self.eager
        for offset, content in others:
            host.add_bytes(arena, start + offset, content)

    def already_copied(self) -> bool:
        """Whether the arena has the same bytes already; compares few small tensors only."""
        return not self.lazy.tensors and not self.device and self.eager.already_copied()

    def versions(self) -> list[list[int]]:
        """The version counters of the tensors: lazy, eager, on devices."""
        return [
            write_counts(self.lazy.counted),
            write_counts(self.eager.counted),
            write_counts([each for source in self.device for each in source.counted]),
        ]


def optimizer_storages(optimizers: Iterable[torch.optim.Optimizer]) -> frozenset[int]:
    """Storage addresses of the optimizers' weights and states, which a forward leaves alone."""
    found: set[int] = set()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            found.update(map(_storage, group["params"]))
        for state in optimizer.state.values():
            for value in state.values() if isinstance(state, dict) else ():
                if isinstance(value, torch.Tensor) and value.layout is torch.strided:
                    found.add(_storage(value))
    return frozenset(found - {0})


def _storage(tensor: torch.Tensor) -> int:
    """Address of the storage of a tensor, or of this rank's part of it."""
    part: torch.Tensor = local_part(tensor) if is_dtensor(tensor) else tensor
    return part.untyped_storage().data_ptr()


class CopyPlanner:
    """Plans the copies of snapshots; the plan for unchanged groups is kept for later saves."""

    def __init__(self) -> None:
        self._fixed: dict[int, tuple[tuple[Any, ...], Copies]] = {}

    def clear(self) -> None:
        """Release every tensor."""
        self._fixed.clear()

    def plan(
        self,
        snapshot: Snapshot,
        placement: ArenaLayout,
        arena: Arena,
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> list[Copies]:
        """Plan all copies of `snapshot` into `arena`: the unchanged groups first, then the rest."""
        files = snapshot.tensor_files
        others = [(path, name) for path, file in files.items() for name in file.others]
        shape = tuple(
            (id(o), len(o.state), *(len(group["params"]) for group in o.param_groups))
            for o in optimizers
        )
        parts = tuple((placement.starts[path], f.plan, f.fixed) for path, f in files.items())
        key = (arena, shape, parts)
        owned: frozenset[int] | None = None
        cached = self._fixed.get(arena.index)
        if cached is not None and cached[0] == key:
            fixed = cached[1]
        else:
            owned, fixed = optimizer_storages(optimizers), Copies()
            self._fixed[arena.index] = (key, fixed)
            for path, file in files.items():
                start, offsets = placement.starts[path], file.plan.offsets
                for fragment in file.fixed:
                    for address in fragment.tensor_addresses[path]:
                        fixed.add(arena, start + offsets[address.name], address, owned)
                fixed.add_gaps(arena, start, file.plan.gaps)
        rest = Copies()
        for path, name in others:
            tensor = files[path].others[name]
            if owned is None and tensor.nbytes >= _FEW_BYTES:
                owned = optimizer_storages(optimizers)
            place = placement.starts[path] + files[path].plan.offsets[name]
            address = tensor_address(name, tensor, files[path].wholes.get(name))
            rest.add(arena, place, address, owned or ())
        return [fixed, rest]


class HostCopier:
    """Threads that copy while training goes on; the copies release the GIL."""

    def __init__(self) -> None:
        cores = len(os.sched_getaffinity(0))
        self._pool = copy_threads(min(_MOST_THREADS, cores), "bt_lightning copy")

    def run(self, batches: Sequence[HostCopies]) -> None:
        """Run the copies and return when the bytes are in the arena."""
        pending = [self._pool.submit(_move, *piece) for batch in batches for piece in batch.large]
        for batch in batches:
            batch.copy_small()
            if batch.targets:
                with torch.no_grad():
                    torch._foreach_copy_(batch.targets, batch.sources)
        for done in pending:
            done.result()

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


def write_counts(tensors: Sequence[torch.Tensor]) -> list[int]:
    """The version counter of each tensor: autograd counts in-place writes.

    -1 for a tensor of `torch.inference_mode`, which has none.
    """
    try:
        return list(map(_VERSION, tensors))
    except RuntimeError:
        return [-1 if tensor.is_inference() else tensor._version for tensor in tensors]


def _move(target: int, source: int, size: int) -> None:
    ctypes.memmove(target, source, size)  # `copy_` would use torch's intra-op threads


def _equal_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    plain = other.resolve_conj().resolve_neg().contiguous()
    return torch.equal(one.reshape(-1).view(torch.uint8), plain.reshape(-1).view(torch.uint8))
