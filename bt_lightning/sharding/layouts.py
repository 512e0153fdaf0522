"""Layouts: how a mesh of ranks divides tensors, and so which box each rank holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bt_lightning.sharding.boxes import Box, chunk

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, order=True)
class Placement:
    """How one dimension of a mesh divides a tensor."""

    dim: int | None = None
    """The dimension of the tensor that is cut; None: each rank has all of it."""
    strided: bool = False
    """Whether the cut comes behind those of later mesh dimensions (torch's `_StridedShard`)."""


REPLICATED = Placement()


@dataclass(frozen=True, slots=True)
class Layout:
    """A mesh of ranks and the placements of a tensor on it."""

    mesh_shape: tuple[int, ...]
    ranks: tuple[int, ...]
    """Global ranks, row-major over the mesh."""
    placements: tuple[Placement, ...]
    """One for each dimension of the mesh."""

    def box(self, shape: Sequence[int], rank: int) -> Box:
        """The box of a rank of the mesh; it may be empty.

        Raises:
            ValueError: the rank is not in the mesh.
        """
        offsets, sizes = [0] * len(shape), list(shape)
        where = self._coordinate(rank)
        cuts = [index for index, each in enumerate(self.placements) if each.dim is not None]
        for index in sorted(cuts, key=lambda each: self.placements[each].strided):
            dim = self.placements[index].dim
            assert dim is not None
            begin, length = chunk(sizes[dim], self.mesh_shape[index], where[index])
            offsets[dim] += begin
            sizes[dim] = length
        return Box(tuple(offsets), tuple(sizes))

    def holders(self, shape: Sequence[int]) -> dict[Box, tuple[int, ...]]:
        """Box -> the ranks that hold it, ascending; without empty boxes."""
        found: dict[Box, list[int]] = {}
        for rank in sorted(self.ranks):
            box = self.box(shape, rank)
            if box.items:
                found.setdefault(box, []).append(rank)
        return {box: tuple(ranks) for box, ranks in found.items()}

    def _coordinate(self, rank: int) -> tuple[int, ...]:
        position = self.ranks.index(rank)
        where = []
        for length in reversed(self.mesh_shape):
            position, at = divmod(position, length)
            where.append(at)
        return tuple(reversed(where))


def replicated(ranks: Sequence[int]) -> Layout:
    """The layout of a tensor that each of these ranks has whole."""
    return Layout((len(ranks),), tuple(ranks), (REPLICATED,))
