"""`shards.json`: which rank's file has which box of which tensor (docs/format.md)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from bt_lightning import file_limits
from bt_lightning.errors import CheckpointCorruptError, UnsupportedStateError
from bt_lightning.path_layout import MOST_RANKS, check_member, shard_file
from bt_lightning.sharding.boxes import tiles
from bt_lightning.sharding.layouts import Layout, Placement
from bt_lightning.sharding.structure import ShardedTensor, Structure, holders_of, writer_of
from bt_lightning.sharding.versioned_json import number_within, read_versioned, refuse
from bt_lightning.tensor_files.tensor_headers import BITS, MOST_SIDES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bt_lightning.sharding.boxes import Box
    from bt_lightning.sharding.structure import Form
    from bt_lightning.sharding.write_plan import WritePlan

FORMAT: Final = "bt_lightning.shards"
VERSION: Final = 1
MOST_BYTES: Final = 12 * 10**12
"""Of the tensors of a checkpoint: the digests of their blocks fit in a manifest."""
MOST_CORNERS: Final = 50_000_000
"""Corners of the boxes of all shapes and layouts: some minutes to verify. 1,000 ranks with 5,000
different shapes have a fifth of it."""
MOST_MESHES: Final = 100_000_000
"""Meshes of all tensors: 1,000 for each of 100,000 of them."""
_MOST_ITEMS: Final = 2**63


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """Where each box of each tensor of a sharded checkpoint is; made by rank 0."""

    structure: Structure
    replicas: Mapping[str, int]
    """Name -> which of the ranks that hold a box of it writes it (`writer_of`)."""
    files: Mapping[int, str]
    """Rank that writes -> its file's path in the checkpoint."""
    tied: Mapping[str, str] = field(default_factory=dict)
    """Other names of tensors that the state has by several names -> the name in the files."""

    @classmethod
    def of_plan(cls, plan: WritePlan, tied: Mapping[str, str] | None = None) -> ShardIndex:
        """The index of what a plan writes, under the names that `path_layout` gives files.

        Raises:
            UnsupportedStateError: no manifest has room for the digests of so many bytes.
        """
        world_size, size = plan.structure.world_size, sum(plan.sizes)
        if size > MOST_BYTES:
            msg = (
                f"the state has {size / 10**12:.1f} TB, expected at most {MOST_BYTES // 10**12} in"
                " one checkpoint: save less of it (save_frozen=False, moments in bfloat16)"
            )
            raise UnsupportedStateError(msg)
        files = {rank: shard_file(rank, world_size) for rank in plan.writers}
        return cls(plan.structure, plan.replicas, files, tied or {})

    @property
    def facts(self) -> dict[str, Any]:
        """What the manifest's `origin["shards"]` says: ranks, files, and the largest mesh."""
        layouts = self.structure.layouts
        mesh = max(layouts, key=lambda one: (len(one.ranks), len(one.mesh_shape)), default=None)
        return {
            "world_size": self.structure.world_size,
            "files": len(self.files),
            "mesh": [] if mesh is None else list(mesh.mesh_shape),
        }

    def stored_name(self, name: str) -> str:
        """The name under which the files have a tensor: that of which it is another name."""
        return self.tied.get(name, name)

    def tensor(self, name: str) -> ShardedTensor:
        """Dtype, shape and layouts of a tensor, by any of its names.

        Raises:
            KeyError: the checkpoint has no such tensor.
        """
        return self.structure.tensors[self.stored_name(name)]

    def boxes(self, name: str) -> list[tuple[str, Box]]:
        """File and box of each part of a tensor, by any of its names, in order of the boxes.

        A tensor without items has none. Its bytes in a file: the header, under `stored_name`.

        Raises:
            KeyError: the checkpoint has no such tensor.
        """
        stored = self.stored_name(name)
        replica = self.replicas[stored]
        holders = self.structure.holders(stored)
        return [(self.files[writer_of(ranks, replica)], box) for box, ranks in holders.items()]

    def to_bytes(self) -> bytes:
        """The content of `shards.json`: ASCII JSON, equal for equal indexes.

        Raises:
            UnsupportedStateError: it is too large for readers.
        """
        structure = self.structure
        numbers = {layout: number for number, layout in enumerate(structure.layouts)}
        groups: dict[tuple[Layout, ...], int] = {}
        rows = {
            name: [
                each.dtype,
                each.shape,
                groups.setdefault(each.layouts, len(groups)),
                self.replicas[name],
            ]
            for name, each in structure.tensors.items()
        }
        document = {
            "format": FORMAT,
            "version": VERSION,
            "world_size": structure.world_size,
            "files": {str(rank): self.files[rank] for rank in sorted(self.files)},
            "layouts": [_layout_row(layout) for layout in structure.layouts],
            "groups": [[numbers[layout] for layout in group] for group in groups],
            "tensors": rows,
            "tied": dict(sorted(self.tied.items())),
        }
        data = json.dumps(document, separators=(",", ":")).encode("ascii") + b"\n"
        try:
            file_limits.SHARDS.check(data)
            _check_corners({each.form for each in structure.tensors.values()})
            if sum(len(each.layouts) for each in structure.tensors.values()) > MOST_MESHES:
                refuse(f"its tensors are on more than {MOST_MESHES:,} meshes")
        except ValueError as error:
            msg = f"the state cannot be saved, its index of shards is too large: {error}"
            raise UnsupportedStateError(msg) from error
        return data

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> ShardIndex:
        """Parse the bytes that `to_bytes` returned; errors name `where`.

        Each item of each tensor is in one box, and that in a file, or it is an error.

        Raises:
            FormatVersionError: it is of a newer version than this package.
            CheckpointCorruptError: anything else that is no whole index.
        """
        try:
            return read_versioned(data, (FORMAT, VERSION), file_limits.SHARDS, _parse)
        except CheckpointCorruptError as error:
            msg = f"the index of shards {where} cannot be read: {error}"
            raise type(error)(msg) from error


def _layout_row(layout: Layout) -> list[Any]:
    cuts = [[each.dim, each.strided] for each in layout.placements]
    return [list(layout.mesh_shape), list(layout.ranks), cuts]


def _parse(document: dict[str, Any]) -> ShardIndex:
    world_size = number_within(document["world_size"], 1, MOST_RANKS)
    files = {_rank(key, world_size): check_member(path) for key, path in _of(document, "files")}
    if len(set(files.values())) != len(files):
        refuse("two ranks have one file")
    layouts = [_layout(row, world_size) for row in document["layouts"]]
    groups = [_group(row, layouts) for row in document["groups"]]
    least_sides = [max((1 + dim for one in each for dim in one.dims), default=0) for each in groups]
    tensors, replicas, meshes = {}, {}, 0
    for name, (dtype, shape, group, replica) in _of(document, "tensors"):
        layouts_of = groups[number_within(group, 0, len(groups) - 1)]
        tensors[name] = _tensor(name, dtype, shape, layouts_of, least_sides[group])
        replicas[name] = number_within(replica, 0, world_size - 1)
        meshes += len(layouts_of)
        if meshes > MOST_MESHES:
            refuse(f"its tensors are on more than {MOST_MESHES:,} meshes, each counted for itself")
    if [*tensors] != sorted(tensors):
        refuse("its tensors are not in order")
    tied = dict(_of(document, "tied"))
    for alias, name in tied.items():
        if alias in tensors or name not in tensors:
            refuse(f"{alias!r} is another name of {name!r}, which is no tensor beside it")
    index = ShardIndex(Structure(tensors, world_size), replicas, files, tied)
    _check_coverage(index)
    return index


def _layout(row: Sequence[Any], world_size: int) -> Layout:
    mesh_shape, ranks, cuts = row
    shape = tuple(number_within(length, 1, MOST_RANKS) for length in mesh_shape)
    each = tuple(number_within(rank, 0, world_size - 1) for rank in ranks)
    if len(shape) > MOST_SIDES or math.prod(shape) != len(each) or len({*each}) != len(each):
        refuse(f"a mesh of the shape {list(shape)} has {len({*each})} ranks")
    if len(cuts) != len(shape):
        refuse(f"a mesh of the shape {list(shape)} has {len(cuts)} placements")
    return Layout(shape, each, tuple(_placement(dim, strided) for dim, strided in cuts))


def _placement(dim: object, strided: object) -> Placement:
    if not isinstance(strided, bool):
        refuse(f"expected a boolean, found {strided!r}")
    return Placement(None if dim is None else number_within(dim, 0, MOST_SIDES), strided)


def _group(row: Sequence[Any], layouts: Sequence[Layout]) -> tuple[Layout, ...]:
    each = tuple(layouts[number_within(number, 0, len(layouts) - 1)] for number in row)
    if not each or len({*each}) != len(each):
        refuse("a group of layouts is empty, or has one twice")
    return each


def _tensor(
    name: str, dtype: object, shape: Sequence[Any], layouts: tuple[Layout, ...], least_sides: int
) -> ShardedTensor:
    if not isinstance(dtype, str) or dtype not in BITS:
        refuse(f"{name!r} has the dtype {dtype!r:.50}")
    sides = tuple(number_within(length, 0, _MOST_ITEMS) for length in shape)
    if len(sides) > MOST_SIDES or math.prod(sides) > _MOST_ITEMS:
        refuse(f"{name!r} has {len(sides)} dimensions and {math.prod(sides[:MOST_SIDES])} items")
    if len(sides) < least_sides:
        refuse(f"{name!r} of the shape {list(sides)} is cut in a dimension that it does not have")
    return ShardedTensor(dtype, sides, layouts)


def _check_coverage(index: ShardIndex) -> None:
    """Whether each item of each tensor is in one box, and each box in a file."""
    replicas: dict[Form, dict[int, str]] = {}
    for name, each in index.structure.tensors.items():
        replicas.setdefault(each.form, {}).setdefault(index.replicas[name], name)
    _check_corners(replicas)
    for form, names in replicas.items():
        holders = holders_of(form)
        for replica, name in names.items():
            writers = {writer_of(ranks, replica) for ranks in holders.values()}
            if not writers <= index.files.keys():
                refuse(f"{name!r} is written by rank {min(writers - index.files.keys())}, no file")
        if not tiles(form[0], holders):
            refuse(f"the boxes of {min(names.values())!r} overlap, or are not all of it")


def _check_corners(forms: Iterable[Form]) -> None:
    corners = 0
    for _, layouts in forms:
        dims = frozenset().union(*(each.cut_dims for each in layouts))
        corners += sum(each.num_boxes for each in layouts) * 2 ** len(dims)
        if corners > MOST_CORNERS:
            refuse(f"its boxes have more than {MOST_CORNERS:,} corners")


def _of(document: dict[str, Any], key: str) -> Iterable[tuple[str, Any]]:
    found = document[key]
    if not isinstance(found, dict):
        refuse(f"{key} is no object")
    return found.items()


def _rank(text: str, world_size: int) -> int:
    if not (text.isascii() and text.isdigit() and str(int(text[:9])) == text):
        refuse(f"{text!r} is no rank")
    return number_within(int(text), 0, world_size - 1)
