"""The plan of a save: which rank writes which box. Every rank computes the same one by itself."""

from __future__ import annotations

import heapq
import json
import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import xxhash

from bt_lightning.sharding.block_size import block_bytes_of
from bt_lightning.sharding.structure import writer_of
from bt_lightning.tensor_files.tensor_headers import BITS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bt_lightning.sharding.boxes import Box
    from bt_lightning.sharding.structure import Form, ShardedTensor, Structure

    _Kind = tuple[Form, str]

SMALL_BYTES: Final = 1024 * 1024
"""Plain tensors below this come from one rank: statistics of a batch differ between the ranks."""
_BYTE = 8


class WritePlan:
    """Who writes what; boxes that one rank alone holds are written there.

    Each tensor has one number, its *replica*: of the ranks that hold a box of it, ascending, the
    one in that place writes it. Tensors get theirs by falling size of their boxes, so that the
    writer with the most bytes has as few as possible; of equal ones the lowest. So the bytes of
    the ranks are about equal, each box is written once, and the decision takes no more room than
    the tensors. Small plain tensors are written by the lowest rank that has them, all of them.
    """

    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        self._boxes: dict[Form, dict[int, Box]] = {}

    def owner(self, name: str, box: Box) -> int:
        """The rank that writes this box.

        Raises:
            KeyError: no rank holds such a box.
        """
        return writer_of(self.structure.holders(name)[box], self.replicas[name])

    def boxes_of(self, rank: int) -> dict[str, Box]:
        """Name -> the box that this rank writes, in order of the names; a rank has one at most."""
        found = {}
        for name, tensor in self.structure.tensors.items():
            box = self._held(name, tensor).get(rank)
            if box is not None and self.owner(name, box) == rank:
                found[name] = box
        return found

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Bytes that each rank writes."""
        return self._decided[1]

    @cached_property
    def writers(self) -> tuple[int, ...]:
        """The ranks that write a box, ascending."""
        return tuple(rank for rank, size in enumerate(self.sizes) if size)

    @cached_property
    def fingerprint(self) -> str:
        """XXH3-128, 32 hex characters: equal if the structure is, and who writes what of it.

        Two ranks that plan differently, by different versions, would leave holes.
        """
        digest = xxhash.xxh3_128(self.structure.fingerprint.encode())
        digest.update(json.dumps([*self.replicas.values()]).encode())
        return digest.hexdigest()

    @cached_property
    def block_bytes(self) -> int:
        """The size of the blocks by which all files of the checkpoint are verified."""
        return block_bytes_of(sum(self.sizes))

    @property
    def replicas(self) -> Mapping[str, int]:
        """Name -> which of the ranks that hold a box of it, ascending, writes it: `writer_of`."""
        return self._decided[0]

    @cached_property
    def _decided(self) -> tuple[Mapping[str, int], tuple[int, ...]]:
        loads = self._loads_without_choice()
        replicas, queue = {}, []
        kinds: dict[_Kind, _SharedBoxes] = {}
        teams: dict[tuple[tuple[int, ...], ...], _Teams] = {}
        for name, tensor in self.structure.tensors.items():
            kind = _kind(tensor)
            if kind not in kinds:
                kinds[kind] = self._shared(name, loads, teams)
            replicas[name] = 0
            if kinds[kind].sizes:
                queue.append((-kinds[kind].largest, name, kinds[kind]))
        queue.sort(key=lambda each: each[:2])
        for _, name, shared in queue:
            replicas[name] = shared.teams.take(shared.sizes)
        return replicas, tuple(loads)

    def _loads_without_choice(self) -> list[int]:
        """Bytes of each rank, of boxes that it alone holds and of small plain tensors."""
        loads = [0] * self.structure.world_size
        names = {_kind(each): name for name, each in self.structure.tensors.items()}
        for kind, count in Counter(map(_kind, self.structure.tensors.values())).items():
            tensor = self.structure.tensors[names[kind]]
            for box, ranks in self.structure.holders(names[kind]).items():
                if len(ranks) == 1 or _from_one_rank(tensor):
                    loads[ranks[0]] += count * _bytes(tensor, box.items)
        return loads

    def _shared(
        self, name: str, loads: list[int], teams: dict[tuple[tuple[int, ...], ...], _Teams]
    ) -> _SharedBoxes:
        """The boxes to decide upon; none of a small plain tensor."""
        tensor = self.structure.tensors[name]
        if _from_one_rank(tensor):
            return _SharedBoxes((), 0, _Teams((), loads))
        shared = [pair for pair in self.structure.holders(name).items() if len(pair[1]) > 1]
        holders = tuple(ranks for _, ranks in shared)
        sizes = tuple(_bytes(tensor, box.items) for box, _ in shared)
        if holders not in teams:
            teams[holders] = _Teams(holders, loads)
        return _SharedBoxes(sizes, max(sizes, default=0), teams[holders])

    def _held(self, name: str, tensor: ShardedTensor) -> Mapping[int, Box]:
        """Rank -> its box; tensors of one form share them."""
        if tensor.form not in self._boxes:
            holders = self.structure.holders(name)
            self._boxes[tensor.form] = {r: box for box, ranks in holders.items() for r in ranks}
        return self._boxes[tensor.form]


class _Teams:
    """The ranks that write boxes with the same holders, for each replica."""

    def __init__(self, holders: Sequence[tuple[int, ...]], loads: list[int]) -> None:
        count = max(map(len, holders), default=0)
        self._loads = loads
        self._teams = [[writer_of(ranks, one) for ranks in holders] for one in range(count)]
        self._heap = [(self._load(one), one) for one in range(count)]
        heapq.heapify(self._heap)

    def take(self, sizes: Sequence[int]) -> int:
        """The replica whose fullest rank has the fewest bytes; its ranks get one size each."""
        known, replica = self._heap[0]
        while known != (load := self._load(replica)):  # written to meanwhile, for other holders
            heapq.heapreplace(self._heap, (load, replica))
            known, replica = self._heap[0]
        for rank, size in zip(self._teams[replica], sizes, strict=True):
            self._loads[rank] += size
        return replica

    def _load(self, replica: int) -> int:
        return max(map(self._loads.__getitem__, self._teams[replica]))


@dataclass(frozen=True, slots=True)
class _SharedBoxes:
    """Boxes that several ranks hold, of tensors of one form and dtype."""

    sizes: tuple[int, ...]
    """Bytes of each."""
    largest: int
    teams: _Teams


def _kind(tensor: ShardedTensor) -> _Kind:
    return (tensor.form, tensor.dtype)


def _from_one_rank(tensor: ShardedTensor) -> bool:
    """Whether it is a small one that some ranks have whole, without a mesh."""
    plain = any(layout.is_plain for layout in tensor.layouts)
    return plain and _bytes(tensor, math.prod(tensor.shape)) < SMALL_BYTES


def _bytes(tensor: ShardedTensor, items: int) -> int:
    return -(-items * BITS[tensor.dtype] // _BYTE)
