"""The structure of a sharded state: which tensors there are, and who holds which box of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import xxhash

from bt_lightning.errors import UnsupportedStateError
from bt_lightning.sharding.boxes import tiles
from bt_lightning.sharding.layouts import Layout, replicated

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bt_lightning.sharding.boxes import Box

    Table = Mapping[str, "HeldTensor"]
    """What one rank holds, by name; equal for all ranks of one mesh."""


@dataclass(frozen=True, slots=True)
class HeldTensor:
    """A tensor as one rank sees it."""

    dtype: str
    """In safetensors' names: `BF16`."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    layout: Layout | None
    """None: this rank has a plain tensor, whole."""


@dataclass(frozen=True, slots=True)
class ShardedTensor:
    """A tensor as all ranks together hold it."""

    dtype: str
    shape: tuple[int, ...]
    layouts: tuple[Layout, ...]
    """Of each mesh that holds it; a box may be held through several."""

    def holders(self) -> dict[Box, tuple[int, ...]]:
        """Box -> the ranks that hold it, ascending, in order of the boxes."""
        found: dict[Box, set[int]] = {}
        for layout in self.layouts:
            for box, ranks in layout.holders(self.shape).items():
                found.setdefault(box, set()).update(ranks)
        return {box: tuple(sorted(found[box])) for box in sorted(found)}


@dataclass(frozen=True)
class Structure:
    """All tensors of a state, in order of their names, on all ranks."""

    tensors: Mapping[str, ShardedTensor]
    world_size: int

    @cached_property
    def layouts(self) -> tuple[Layout, ...]:
        """The different layouts, in the order in which tensors have them."""
        each = dict.fromkeys(one for tensor in self.tensors.values() for one in tensor.layouts)
        return tuple(each)

    @cached_property
    def fingerprint(self) -> str:
        """XXH3-128 of the structure, 32 hex characters: equal if and only if the structures are."""
        numbers = {layout: number for number, layout in enumerate(self.layouts)}
        digest = xxhash.xxh3_128()
        for layout in self.layouts:
            cuts = [[each.dim, each.strided] for each in layout.placements]
            digest.update(json.dumps([layout.mesh_shape, layout.ranks, cuts]).encode())
        for name, each in self.tensors.items():
            row = [name, each.dtype, each.shape, [numbers[one] for one in each.layouts]]
            digest.update(json.dumps(row).encode())
        digest.update(str(self.world_size).encode())
        return digest.hexdigest()


def merge(tables: Sequence[Table], table_of_rank: Sequence[int]) -> Structure:
    """The structure that the tables of all ranks make; called on each rank, with one result.

    Args:
        tables: the different tables.
        table_of_rank: for each rank, the index of its table.

    Raises:
        UnsupportedStateError: two ranks say different things of one name, or the boxes of a
            tensor overlap or leave holes.
    """
    holders: dict[int, list[int]] = {}
    for rank, index in enumerate(table_of_rank):
        holders.setdefault(index, []).append(rank)
    first = {index: ranks[0] for index, ranks in holders.items()}
    found: dict[str, tuple[HeldTensor, int, dict[Layout, None], list[int]]] = {}
    for index, ranks in holders.items():
        for name, held in tables[index].items():
            known = found.setdefault(name, (held, first[index], {}, []))
            if (known[0].dtype, known[0].shape) != (held.dtype, held.shape):
                msg = (
                    f"{name} is {held.dtype} {list(held.shape)} on rank {first[index]} and"
                    f" {known[0].dtype} {list(known[0].shape)} on rank {known[1]}: expected one"
                    " tensor, of which each rank holds a part"
                )
                raise UnsupportedStateError(msg)
            if held.layout is None:
                known[3].extend(ranks)
            else:
                known[2][held.layout] = None
    tensors, checked = {}, set()
    for name in sorted(found):
        held, _, layouts, plain = found[name]
        each = [*sorted(layouts, key=repr), *([replicated(sorted(plain))] if plain else [])]
        tensor = ShardedTensor(held.dtype, held.shape, tuple(each))
        group = (tensor.shape, tensor.layouts)
        if group not in checked and not tiles(tensor.shape, tensor.holders()):
            msg = (
                f"the parts of {name} {list(tensor.shape)} on {len(table_of_rank)} ranks overlap,"
                " or are not all of it: expected each item on some rank, in boxes that are equal"
                " or disjoint"
            )
            raise UnsupportedStateError(msg)
        checked.add(group)
        tensors[name] = tensor
    return Structure(tensors, len(table_of_rank))
