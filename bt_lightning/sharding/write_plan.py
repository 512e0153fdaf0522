"""The plan of a save: which rank writes which box. Every rank computes the same one by itself."""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from functools import cached_property
from typing import TYPE_CHECKING

from bt_lightning.tensor_files.tensor_headers import BITS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bt_lightning.sharding.boxes import Box
    from bt_lightning.sharding.layouts import Layout
    from bt_lightning.sharding.structure import ShardedTensor, Structure

    _Form = tuple[tuple[int, ...], tuple[Layout, ...]]

_BYTE = 8


class WritePlan:
    """Who writes what; boxes that one rank alone holds are written there.

    Of the others each goes, by falling size, to the holder with the fewest bytes; of equal ones to
    the lowest rank. So the bytes of the ranks are about equal, and each box is written once.
    """

    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        self._holders: dict[_Form, dict[Box, tuple[int, ...]]] = {}
        self._boxes: dict[_Form, dict[int, list[Box]]] = {}

    def owner(self, name: str, box: Box) -> int:
        """The rank that writes this box.

        Raises:
            KeyError: no rank holds such a box.
        """
        holders = self._of(self.structure.tensors[name])[box]
        return holders[0] if len(holders) == 1 else self._owners[name, box]

    def boxes_of(self, rank: int) -> dict[str, Box]:
        """Name -> the box that this rank writes, in order of the names; a rank has one at most."""
        return {
            name: box
            for name, tensor in self.structure.tensors.items()
            for box in self._held_by(tensor).get(rank, ())
            if self.owner(name, box) == rank
        }

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Bytes that each rank writes."""
        loads = self._alone()
        for (name, box), rank in self._owners.items():
            loads[rank] += _size(self.structure.tensors[name], box)
        return tuple(loads)

    @cached_property
    def _owners(self) -> Mapping[tuple[str, Box], int]:
        """The owner of each box that several ranks hold."""
        loads = self._alone()
        shared = [
            (-_size(tensor, box), name, box, ranks)
            for name, tensor in self.structure.tensors.items()
            for box, ranks in self._of(tensor).items()
            if len(ranks) > 1
        ]
        shared.sort()
        heaps: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        owners = {}
        for size, name, box, ranks in shared:
            heap = heaps.get(ranks)
            if heap is None:
                heap = heaps[ranks] = [(loads[rank], rank) for rank in ranks]
                heapq.heapify(heap)
            while heap[0][0] != loads[heap[0][1]]:  # written to meanwhile, through another mesh
                heapq.heapreplace(heap, (loads[heap[0][1]], heap[0][1]))
            rank = heap[0][1]
            loads[rank] -= size
            heapq.heapreplace(heap, (loads[rank], rank))
            owners[name, box] = rank
        return owners

    def _alone(self) -> list[int]:
        """Bytes of the boxes that each rank alone holds."""
        loads = [0] * self.structure.world_size
        for tensor, count in Counter(self.structure.tensors.values()).items():
            for box, ranks in self._of(tensor).items():
                if len(ranks) == 1:
                    loads[ranks[0]] += count * _size(tensor, box)
        return loads

    def _of(self, tensor: ShardedTensor) -> dict[Box, tuple[int, ...]]:
        """The holders of each box; tensors of one form share them."""
        form = (tensor.shape, tensor.layouts)
        if form not in self._holders:
            self._holders[form] = tensor.holders()
        return self._holders[form]

    def _held_by(self, tensor: ShardedTensor) -> Mapping[int, list[Box]]:
        form = (tensor.shape, tensor.layouts)
        if form not in self._boxes:
            found = self._boxes[form] = defaultdict(list)
            for box, ranks in self._of(tensor).items():
                for rank in ranks:
                    found[rank].append(box)
        return self._boxes[form]


def _size(tensor: ShardedTensor, box: Box) -> int:
    """Bytes of a box."""
    return math.prod(box.sizes) * BITS[tensor.dtype] // _BYTE
