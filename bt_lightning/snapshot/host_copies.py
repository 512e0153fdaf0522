"""The copies that bring a snapshot into an arena: which at once, which beside training."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from bt_lightning.snapshot.copy_threads import copy_threads
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
"""Bytes from which on a copy is worth a task of its own."""
_PIECE = 192 * 1024 * 1024
"""Bytes, at least, of a part of a larger tensor: with shorter ones memmove(3) would go through the
cache, at half the speed on machines with a large one."""
_MOST_THREADS = 4
_FEW_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class CopySource:
    """One tensor on a CUDA device, and where it goes."""

    offset: int
    tensor: torch.Tensor
    owned: bool
    """Whether only optimizers change it."""


@dataclass(eq=False)
class HostCopies:
    """Copies of tensors on the CPU, laid out once and carried out any number of times."""

    large: list[Piece] = field(default_factory=list)
    small: list[Piece] = field(default_factory=list)
    targets: list[torch.Tensor] = field(default_factory=list)
    """Views of the arena for what is not contiguous."""
    sources: list[torch.Tensor] = field(default_factory=list)
    held: list[torch.Tensor] = field(default_factory=list)
    """Every source: their memory must stay, and their versions tell whether it changed."""
    _arena: Arena | None = None
    _gather: SmallCopies | None = None

    def add(self, arena: Arena, offset: int, spot: TensorAddress) -> None:
        """Copy a tensor to `offset` when these copies are carried out."""
        _, tensor, _, here, size, plain = spot
        if size == 0:
            return
        self.held.append(tensor)
        if not plain:
            self.targets.append(arena.view(offset, tensor))
            self.sources.append(tensor)
            return
        there = arena.address + offset
        if size < _BIG:
            self.small.append((there, here, size))
            self._arena, self._gather = arena, None
            return
        length = -(-size // max(1, size // _PIECE))
        for start in range(0, size, length):
            self.large.append((there + start, here + start, min(length, size - start)))

    def gather(self) -> None:
        """Copy what is small and contiguous."""
        if self._arena is None:
            return
        if self._gather is None:
            self._gather = SmallCopies(self.small, self._arena.address)
        self._gather.copy(self._arena.descriptor)

    def same(self) -> bool:
        """Whether the bytes are in the arena already; for few small tensors only."""
        few = not self.large and sum(tensor.nbytes for tensor in self.held) < _FEW_BYTES
        return (
            few
            and all(ctypes.string_at(t, n) == ctypes.string_at(h, n) for t, h, n in self.small)
            and all(map(_equal_bits, self.targets, self.sources))
        )


@dataclass(eq=False)
class Copies:
    """All copies of some tensors, by the way they go."""

    lazy: HostCopies = field(default_factory=HostCopies)
    """Only an optimizer changes these: they may be copied beside forward and backward."""
    eager: HostCopies = field(default_factory=HostCopies)
    device: list[CopySource] = field(default_factory=list)

    def add(self, arena: Arena, offset: int, spot: TensorAddress, owned: Collection[int]) -> None:
        """Sort one tensor in; `owned` are addresses of the storages that optimizers change."""
        tensor, is_owned = spot.tensor, spot.storage in owned
        if tensor.is_cuda:
            self.device.append(CopySource(offset, tensor, is_owned))
        else:
            lazy = is_owned and tensor.is_cpu
            (self.lazy if lazy else self.eager).add(arena, offset, spot)

    def same(self) -> bool:
        """Whether the bytes are in the arena already; for few small tensors only."""
        return not self.lazy.held and not self.device and self.eager.same()

    def versions(self) -> list[list[int]]:
        """How often each source was written to in place: lazy, eager, on devices."""
        return [
            write_counts(self.lazy.held),
            write_counts(self.eager.held),
            [source.tensor._version for source in self.device],
        ]


def storages(optimizers: Iterable[torch.optim.Optimizer]) -> frozenset[int]:
    """Addresses of the memory that these optimizers change, and nothing else does in forward."""
    found: set[int] = set()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            found.update(weight.untyped_storage().data_ptr() for weight in group["params"])
        for state in optimizer.state.values():
            for value in state.values() if isinstance(state, dict) else ():
                if isinstance(value, torch.Tensor) and value.layout is torch.strided:
                    found.add(value.untyped_storage().data_ptr())
    return frozenset(found - {0})


class Sorter:
    """Sorts the tensors of snapshots into copies; those that are the same each time, once."""

    def __init__(self) -> None:
        self._fixed: dict[int, tuple[tuple[Any, ...], Copies]] = {}

    def forget(self) -> None:
        """Let go of every tensor."""
        self._fixed.clear()

    def sort(
        self,
        snapshot: Snapshot,
        placement: ArenaLayout,
        arena: Arena,
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> list[Copies]:
        """Every copy of `snapshot` into `arena`: of what is the same each time, and of the rest."""
        files = snapshot.tensor_files
        others = [(path, name) for path, file in files.items() for name in file.others]
        shape = tuple(
            (id(o), len(o.state), *(len(group["params"]) for group in o.param_groups))
            for o in optimizers
        )
        parts = tuple((placement.starts[path], f.plan, f.fixed) for path, f in files.items())
        key = (arena, shape, parts)
        owned: frozenset[int] | None = None
        known = self._fixed.get(arena.index)
        if known is not None and known[0] == key:
            fixed = known[1]
        else:
            owned, fixed = storages(optimizers), Copies()
            self._fixed[arena.index] = (key, fixed)
            for path, file in files.items():
                start, offsets = placement.starts[path], file.plan.offsets
                for fragment in file.fixed:
                    for known_spot in fragment.spots[path]:
                        fixed.add(arena, start + offsets[known_spot.name], known_spot, owned)
        rest = Copies()
        for path, name in others:
            tensor = files[path].others[name]
            if owned is None and tensor.nbytes >= _FEW_BYTES:
                owned = storages(optimizers)
            place = placement.starts[path] + files[path].plan.offsets[name]
            rest.add(arena, place, tensor_address(name, tensor), owned or ())
        return [fixed, rest]


class HostCopier:
    """Threads that copy beside the training thread. Every call into C gives up the GIL."""

    def __init__(self) -> None:
        cores = len(os.sched_getaffinity(0))
        self._pool = copy_threads(min(_MOST_THREADS, cores), "bt_lightning copy")

    def run(self, batches: Sequence[HostCopies]) -> None:
        """Carry out the copies; returns when the bytes are there."""
        pending = [self._pool.submit(_move, *piece) for batch in batches for piece in batch.large]
        for batch in batches:
            batch.gather()
            if batch.targets:
                with torch.no_grad():
                    torch._foreach_copy_(batch.targets, batch.sources)
        for done in pending:
            done.result()

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


def write_counts(tensors: Iterable[torch.Tensor]) -> list[int]:
    """How often each tensor was written to in place, as autograd counts it."""
    return [tensor._version for tensor in tensors]


def _move(there: int, here: int, size: int) -> None:
    ctypes.memmove(there, here, size)  # not a copy_: it would take the threads of training


def _equal_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    plain = other.resolve_conj().resolve_neg().contiguous()
    return torch.equal(one.reshape(-1).view(torch.uint8), plain.reshape(-1).view(torch.uint8))
