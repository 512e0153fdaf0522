"""The whole tensors of a checkpoint, in shards of many ranks or in files of their own."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NoReturn

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.manage.file_contents import header_of_file
from bt_lightning.manage.saved_tree import (
    GROUPS,
    OPTIMIZERS,
    at,
    plain_value,
    read_document,
    references_in,
    tensors_in,
    weights_entry,
)
from bt_lightning.manage.tensor_bytes import StoredTensor
from bt_lightning.manage.verified_reads import read_open_file
from bt_lightning.path_layout import ADAPTER, SHARDS, STATE, WEIGHTS, rank_file, rank_of_shard
from bt_lightning.sharding.boxes import whole_box
from bt_lightning.sharding.read_plan import SavedBox
from bt_lightning.sharding.shard_index import ShardIndex
from bt_lightning.store.transfer.parallel_reads import in_parallel
from bt_lightning.tensor_files.tensor_headers import BITS, OF_SHARDS, Tensor
from bt_lightning.tree_document import WEIGHTS_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.manage.checkpoint_items import CheckpointItem
    from bt_lightning.manage.saved_tree import Path
    from bt_lightning.manifest import Manifest
    from bt_lightning.sharding.layouts import Layout
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader
    from bt_lightning.tensor_files.tensor_headers import Header

SHARDED: Final = "shards"
_FILES: Final = {"weights": WEIGHTS, "state": STATE, "adapter": ADAPTER}
"""How a tree names the files of whole tensors."""
_OFFSETS: Final = "DCP_SHARDING_INFO"
_READERS: Final = 8


@dataclass(frozen=True, slots=True)
class Shards:
    """The tensors of a sharded checkpoint that lie in files of ranks, whole."""

    index: ShardIndex
    tensors: Mapping[str, StoredTensor]
    """By the names under which files have them, in their order."""


@dataclass(frozen=True, slots=True)
class PlacedTensors:
    """The tensors of a checkpoint by their places in the state that was saved."""

    document: Mapping[str, Any]
    """Of `trainer.json`."""
    shards: Shards | None
    files: Mapping[str, Mapping[str, StoredTensor]] = field(default_factory=dict)
    """File -> name -> tensor, of whole tensors."""

    @property
    def tree(self) -> Any:
        """What the document says of the state."""
        return self.document["tree"]

    def find(self, node: Mapping[str, Any]) -> StoredTensor:
        """The tensor to which a node of the tree refers.

        Raises:
            CheckpointCorruptError: the checkpoint does not have it.
        """
        file, name = node.get("file"), node.get("name")
        found = None
        if file == SHARDED and self.shards is not None and isinstance(name, str):
            found = self.shards.tensors.get(self.shards.index.stored_name(name))
        elif isinstance(file, str) and isinstance(name, str):
            found = self.files.get(_FILES.get(file, ""), {}).get(name)
        if found is None:
            msg = f"the tree refers to the tensor {name!r} of {file!r}, which is not there"
            raise CheckpointCorruptError(msg)
        return found


def read_index(reader: CheckpointReader, item: CheckpointItem) -> ShardIndex:
    """The index of a sharded checkpoint. Raises as `read_shards`."""
    entry = item.manifest.entry(SHARDS)
    assert entry is not None, "it is sharded"
    return ShardIndex.from_bytes(read_open_file(reader, entry), f"{item.name}/{SHARDS}")


def read_shards(
    reader: CheckpointReader, item: CheckpointItem, *, is_verified: bool = True
) -> Shards:
    """The index of a sharded checkpoint, and where each box lies by the headers of its files.

    Without `is_verified`, headers are read without the rest of their blocks, to be shown only.

    Raises:
        CheckpointCorruptError: the index and the headers do not agree, or one is damaged.
        CheckpointNotFoundError: the checkpoint was deleted meanwhile.
        StoreError: the store refused.
    """

    def header_of(one: FileEntry) -> Header:
        return header_of_file(reader, item, one, OF_SHARDS, is_verified=is_verified)

    index = read_index(reader, item)
    paths = sorted(index.files.values())
    listed = [item.manifest.entry(path) for path in paths]
    for path, one in zip(paths, listed, strict=True):
        if one is None:
            _fail(item, f"{SHARDS} names the file {path}, and the manifest does not")
    files = [one for one in listed if one is not None]
    headers = in_parallel(header_of, files, _READERS)
    placed = {
        one.path: _placed(item, one, found) for one, found in zip(files, headers, strict=True)
    }
    tensors = {name: _whole(item, index, name, placed) for name in index.structure.tensors}
    for path, left in placed.items():
        if left:
            _fail(item, f"{path} has {min(left)!r}, which {SHARDS} does not place there")
    return Shards(index, tensors)


def _placed(
    item: CheckpointItem, entry: FileEntry, header: Header
) -> dict[str, tuple[Tensor, tuple[int, ...]]]:
    """Name -> what the header of a shard says of it, and the offsets of its box."""
    try:
        said = json.loads(header.metadata[_OFFSETS])
        offsets = {name: tuple(one["saved_offsets"]) for name, one in said.items()}
        return {tensor.name: (tensor, offsets.pop(tensor.name)) for tensor in header.tensors}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        _fail(item, f"the header of {entry.path} says not of each tensor where it belongs: {error}")


def _whole(
    item: CheckpointItem,
    index: ShardIndex,
    name: str,
    placed: Mapping[str, dict[str, tuple[Tensor, tuple[int, ...]]]],
) -> StoredTensor:
    """One tensor of the index; its boxes are taken out of `placed`."""
    known = index.structure.tensors[name]
    found = []
    for path, box in index.boxes(name):
        tensor, offsets = placed[path].pop(name, (None, ()))
        if tensor is None:
            _fail(item, f"{path} lacks {name!r}, which {SHARDS} places there")
        if (tensor.dtype, tensor.shape, offsets) != (known.dtype, box.sizes, box.offsets):
            _fail(
                item,
                f"{path} has {tensor.dtype} {list(tensor.shape)} of {name!r} at {list(offsets)},"
                f" {SHARDS} says {known.dtype} {list(box.sizes)} at {list(box.offsets)}",
            )
        assert tensor.offset is not None, "a safetensors header gives every offset"
        found.append(SavedBox(box, path, tensor.offset))
    size = math.prod(known.shape) * BITS[known.dtype] // 8
    whole = Tensor(name, known.dtype, known.shape, size)
    return StoredTensor(whole, tuple(found), divided(known.layouts))


def divided(layouts: Sequence[Layout]) -> str:
    """How ranks divide a tensor, for people: `Shard(0) x Replicate on 2 x 4`."""
    said = []
    for layout in layouts:
        each = [
            "Replicate" if one.dim is None else f"{'Strided' * one.strided}Shard({one.dim})"
            for one in layout.placements
        ]
        mesh = " x ".join(map(str, layout.mesh_shape))
        said.append(f"{' x '.join(each)} on {mesh}")
    return "; ".join(dict.fromkeys(said))


def whole_tensors(
    reader: CheckpointReader, item: CheckpointItem, entry: FileEntry
) -> list[StoredTensor]:
    """The tensors of a safetensors file, each in one box. Raises as `read_shards`."""
    return [
        StoredTensor(tensor, (SavedBox(whole_box(tensor.shape), entry.path, tensor.offset),))
        for tensor in header_of_file(reader, item, entry, is_verified=True).tensors
        if tensor.offset is not None
    ]


def read_state(reader: CheckpointReader, item: CheckpointItem) -> PlacedTensors:
    """All tensors of a checkpoint of our own layout, with the tree that names them.

    Raises as `read_shards`.
    """
    shards = read_shards(reader, item) if item.manifest.is_sharded else None
    files = {}
    for path in _FILES.values():
        entry = item.manifest.entry(path)
        if entry is not None:
            files[path] = {one.tensor.name: one for one in whole_tensors(reader, item, entry)}
    return PlacedTensors(read_document(reader, item), shards, files)


def check_references(reader: CheckpointReader, item: CheckpointItem, state: PlacedTensors) -> None:
    """Look for each tensor that `trainer.json`, or a file of what is one rank's own, refers to.

    Raises as `read_shards`; `CheckpointCorruptError` if one is not there.
    """
    ranks = [entry.path for entry in item.manifest.files if _is_of_rank(entry.path)]
    for one in [state, *(_own_state(reader, item, path) for path in ranks)]:
        for node in references_in(one.document):
            one.find(node)


def _is_of_rank(path: str) -> bool:
    rank = rank_of_shard(path)
    return rank is not None and path == rank_file(rank)


def _own_state(reader: CheckpointReader, item: CheckpointItem, path: str) -> PlacedTensors:
    """What is one rank's own, by its file below `ranks/`."""
    beside = item.manifest.entry(path.removesuffix(".json") + ".safetensors")
    found = [] if beside is None else whole_tensors(reader, item, beside)
    files = {STATE: {one.tensor.name: one for one in found}}
    return PlacedTensors(read_document(reader, item, path), None, files)


def world_size(manifest: Manifest) -> int | None:
    """The number of ranks that saved a sharded checkpoint, as its manifest says; None: of none."""
    said = manifest.origin.get("shards") if manifest.is_sharded else None
    found = said.get("world_size") if isinstance(said, dict) else None
    return found if isinstance(found, int) else None


def by_place(state: PlacedTensors) -> dict[str, StoredTensor]:
    """Weights and optimizer states by their places in the state, alike for shards and whole files.

    `state_dict.<name>`, and `optimizer_states.0.state.<n>.<key>` for the n-th parameter of the
    optimizer's groups, whether the checkpoint has it by name or by number.
    """
    found = {}
    for path, node in tensors_in(at(state.tree, weights_entry(state.tree)), (WEIGHTS_KEY,)):
        found[_dotted(path)] = state.find(node)
    optimizers = at(state.tree, OPTIMIZERS)
    for number, optimizer in enumerate(optimizers if isinstance(optimizers, list) else ()):
        order: dict[str | int, str | int] = {
            name: n for n, name in enumerate(parameter_order(optimizer)) if isinstance(name, str)
        }
        for path, node in tensors_in(at(optimizer, "state")):
            place = (OPTIMIZERS, number, "state", order.get(path[0], path[0]), *path[1:])
            found[_dotted(place)] = state.find(node)
    return found


def parameter_order(optimizer: Any) -> list[str | int]:
    """Names or numbers of the parameters of an optimizer's node, in order of its groups."""
    groups = at(optimizer, GROUPS)
    found: list[str | int] = []
    for group in groups if isinstance(groups, list) else ():
        named = plain_value(at(group, "params"))
        found += named if isinstance(named, list) else ()
    return found


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))


def _fail(item: CheckpointItem, reason: str) -> NoReturn:
    msg = f"the checkpoint {item.name} is damaged: {reason}"
    raise CheckpointCorruptError(msg)
