"""Layouts: how a mesh of ranks divides tensors, and so which box each rank holds."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from bt_lightning.sharding.boxes import Box, chunk

if TYPE_CHECKING:
    from collections.abc import Sequence

    Coordinate = tuple[int, ...]
    """A place in a mesh: an index of each of its dimensions."""


@dataclass(frozen=True, slots=True, order=True)
class Placement:
    """How one dimension of a mesh divides a tensor."""

    dim: int | None = None
    """The dimension of the tensor that is cut; None: each rank has all of it."""
    strided: bool = False
    """Whether the cut comes behind those of all later mesh dimensions that cut there (torch's
    `_StridedShard`, which FSDP2 makes of tensors that others cut before it)."""


REPLICATED = Placement()


@dataclass(frozen=True)
class Layout:
    """A mesh of ranks and the placements of a tensor on it."""

    mesh_shape: tuple[int, ...]
    ranks: tuple[int, ...]
    """Global ranks, row-major over the mesh."""
    placements: tuple[Placement, ...]
    """One for each dimension of the mesh."""

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[object, ...]:
        return Layout, (self.mesh_shape, self.ranks, self.placements)  # hashes are a process's own

    @cached_property
    def order(self) -> tuple[object, ...]:
        """Sort key: layouts in an order of their content."""
        cuts = [(-1 if each.dim is None else each.dim, each.strided) for each in self.placements]
        return self.ranks, self.mesh_shape, tuple(cuts)

    @cached_property
    def is_plain(self) -> bool:
        """Whether each rank has a tensor whole, without a mesh of more dimensions."""
        return self.placements == (REPLICATED,)

    @cached_property
    def dims(self) -> frozenset[int]:
        """Dimensions of the tensor that placements name."""
        return frozenset(each.dim for each in self.placements if each.dim is not None)

    @cached_property
    def cut_dims(self) -> frozenset[int]:
        """Those of them that are divided."""
        pairs = zip(self.placements, self.mesh_shape, strict=True)
        return frozenset(each.dim for each, n in pairs if each.dim is not None and n > 1)

    def box(self, shape: Sequence[int], rank: int) -> Box:
        """The box of a rank of the mesh; it may be empty.

        Raises:
            KeyError: the rank is not in the mesh.
        """
        return self._box(shape, self._coordinates[rank])

    def holders(self, shape: Sequence[int]) -> dict[Box, tuple[int, ...]]:
        """Box -> the ranks that hold it, ascending; without empty boxes."""
        boxes = ((self._box(shape, where), ranks) for where, ranks in self._holders.items())
        return {box: ranks for box, ranks in boxes if box.items}

    @cached_property
    def num_boxes(self) -> int:
        """Number of boxes of a tensor that is large enough."""
        return len(self._holders)

    def _box(self, shape: Sequence[int], where: Coordinate) -> Box:
        offsets, sizes = [0] * len(shape), list(shape)
        for index, dim in self._cuts:
            begin, length = chunk(sizes[dim], self.mesh_shape[index], where[index])
            offsets[dim] += begin
            sizes[dim] = length
        return Box(tuple(offsets), tuple(sizes))

    @cached_property
    def _cuts(self) -> tuple[tuple[int, int], ...]:
        """Dimensions of the mesh and of the tensor, in the order in which it is cut."""
        cuts = [(n, each) for n, each in enumerate(self.placements) if each.dim is not None]
        first = [(n, each.dim) for n, each in cuts if not each.strided and each.dim is not None]
        last = [(n, each.dim) for n, each in cuts if each.strided and each.dim is not None]
        return (*first, *reversed(last))

    @cached_property
    def _coordinates(self) -> dict[int, Coordinate]:
        places = itertools.product(*map(range, self.mesh_shape))
        return dict(zip(self.ranks, places, strict=True))

    @cached_property
    def _holders(self) -> dict[Coordinate, tuple[int, ...]]:
        """Coordinate, 0 in dimensions that do not cut -> ranks that have one box there."""
        found: dict[Coordinate, list[int]] = {}
        cuts = [each.dim is not None for each in self.placements]
        for rank in sorted(self.ranks):
            pairs = zip(self._coordinates[rank], cuts, strict=True)
            found.setdefault(tuple(at if cut else 0 for at, cut in pairs), []).append(rank)
        return {where: tuple(ranks) for where, ranks in found.items()}

    @cached_property
    def _hash(self) -> int:
        return hash((self.mesh_shape, self.ranks, self.placements))


def placements_in_boxes(
    mesh_shape: Sequence[int], cuts: Sequence[tuple[int | None, int]]
) -> tuple[Placement, ...] | None:
    """The placements of cuts as torch names them, if each rank then has a box; None: it has not.

    Args:
        mesh_shape: of the mesh.
        cuts: for each of its dimensions the dimension of the tensor, from 0, or None for replicas;
            and the `split_factor` of a `_StridedShard`, or 1 of a `Shard`.

    Where a strided cut does not divide a tensor evenly, torch itself has two opinions of who has
    what, and of these only FSDP2's are boxes: compare the size of a rank's part with its box.
    """
    placements = []
    for index, (dim, factor) in enumerate(cuts):
        later = zip(cuts[index + 1 :], mesh_shape[index + 1 :], strict=True)
        if factor not in {1, math.prod(length for cut, length in later if cut[0] == dim)}:
            return None
        placements.append(Placement(dim, strided=dim is not None and factor != 1))
    return tuple(placements)


def replicated(ranks: Sequence[int]) -> Layout:
    """The layout of a tensor that each of these ranks has whole."""
    return Layout((len(ranks),), tuple(ranks), (REPLICATED,))
