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
    Form = tuple[tuple[int, ...], tuple[Layout, ...]]
    """Shape and layouts: tensors that have the same ones have the same boxes and holders."""
    Holders = Mapping[Box, tuple[int, ...]]
    """Box -> the ranks that hold it, ascending; in order of the boxes, without empty ones."""


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

    @property
    def form(self) -> Form:
        """What its boxes and their holders follow from."""
        return (self.shape, self.layouts)


@dataclass(frozen=True)
class Structure:
    """All tensors of a state, in order of their names, on all ranks."""

    tensors: Mapping[str, ShardedTensor]
    world_size: int

    @cached_property
    def layouts(self) -> tuple[Layout, ...]:
        """The different layouts, in the order in which tensors have them."""
        each = dict.fromkeys(tensor.layouts for tensor in self.tensors.values())
        return tuple(dict.fromkeys(one for layouts in each for one in layouts))

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

    def holders(self, name: str) -> Holders:
        """The boxes of a tensor and the ranks that hold them.

        Raises:
            KeyError: there is no such tensor.
        """
        form = self.tensors[name].form
        if form not in self._holders:
            self._holders[form] = holders_of(form)
        return self._holders[form]

    @cached_property
    def _holders(self) -> dict[Form, Holders]:
        return {}


def holders_of(form: Form) -> Holders:
    """The boxes of a tensor of this form and the ranks that hold them."""
    shape, layouts = form
    found: dict[Box, tuple[int, ...]] = {}
    for layout in layouts:
        for box, ranks in layout.holders(shape).items():
            others = found.get(box)
            found[box] = ranks if others is None else tuple(sorted({*others, *ranks}))
    return {box: found[box] for box in sorted(found)}


def writer_of(ranks: Sequence[int], replica: int) -> int:
    """Of the ranks that hold a box, ascending, the one that writes it, by the tensor's replica."""
    return ranks[replica % len(ranks)]


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
    found: dict[str, list[tuple[int, HeldTensor]]] = {}
    for index in holders:
        for name, held in tables[index].items():
            found.setdefault(name, []).append((index, held))
    layouts = _Layouts(holders)
    tensors, checked = {}, set()
    for name in sorted(found):
        _refuse_contradictions(name, found[name], holders)
        held = found[name][0][1]
        tensor = ShardedTensor(held.dtype, held.shape, layouts.of(name, found[name]))
        if tensor.form not in checked and not tiles(tensor.shape, holders_of(tensor.form)):
            msg = (
                f"the parts of {name} {list(tensor.shape)} on {len(table_of_rank)} ranks overlap,"
                " or are not all of it: expected each item on some rank, in boxes that are equal"
                " or disjoint"
            )
            raise UnsupportedStateError(msg)
        checked.add(tensor.form)
        tensors[name] = tensor
    return Structure(tensors, len(table_of_rank))


def _refuse_contradictions(
    name: str, said: Sequence[tuple[int, HeldTensor]], holders: Mapping[int, Sequence[int]]
) -> None:
    first, known = said[0]
    for index, held in said:
        if (known.dtype, known.shape) != (held.dtype, held.shape):
            msg = (
                f"{name} is {held.dtype} {list(held.shape)} on rank {holders[index][0]} and"
                f" {known.dtype} {list(known.shape)} on rank {holders[first][0]}: expected one"
                " tensor, of which each rank holds a part"
            )
            raise UnsupportedStateError(msg)


class _Layouts:
    """The layouts of tensors, from what the tables say; equal ones are one object."""

    def __init__(self, holders: Mapping[int, Sequence[int]]) -> None:
        self._holders = holders
        self._known: dict[tuple[object, ...], tuple[Layout, ...]] = {}
        self._each: dict[Layout, Layout] = {}

    def of(self, name: str, said: Sequence[tuple[int, HeldTensor]]) -> tuple[Layout, ...]:
        """In an order that does not depend on that of the tables."""
        shape = said[0][1].shape
        key = (shape, *((index, held.layout) for index, held in said))
        if key not in self._known:
            ranks: dict[Layout | None, list[int]] = {}
            for index, held in said:
                ranks.setdefault(held.layout, []).extend(self._holders[index])
            each = [self._checked(name, shape, *pair) for pair in ranks.items()]
            self._known[key] = tuple(sorted(dict.fromkeys(each), key=lambda one: one.order))
        return self._known[key]

    def _checked(
        self, name: str, shape: tuple[int, ...], layout: Layout | None, ranks: list[int]
    ) -> Layout:
        """The layout of the ranks that hold it so, if those are the ranks of its mesh."""
        ranks.sort()
        one = replicated(ranks) if layout is None else layout
        for rank in {*ranks}.symmetric_difference(one.ranks):
            inside = rank in one.ranks
            if inside and not one.box(shape, rank).items:
                continue  # an optimizer may keep nothing for a part that is empty
            msg = (
                f"{name} lies on a mesh of {len(one.ranks)} ranks, and rank {rank}"
                f" {'lacks it' if inside else 'holds it, which is none of them'}: expected each"
                " rank of a mesh to hold its part"
            )
            raise UnsupportedStateError(msg)
        return self._each.setdefault(one, one)
