"""Whole committed sharded checkpoints from full tensors, without training and process groups."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from bt_lightning.localdir.commit import commit
from bt_lightning.localdir.digest import Hasher
from bt_lightning.manifest import ManifestFacts
from bt_lightning.path_layout import SHARDS, STATE, TREE, rank_file
from bt_lightning.sharding.layouts import REPLICATED, Layout, Placement
from bt_lightning.sharding.shard_index import ShardIndex
from bt_lightning.sharding.structure import HeldTensor, merge
from bt_lightning.sharding.write_plan import WritePlan
from bt_lightning.snapshot.dtypes import SAFETENSORS
from bt_lightning.snapshot.safetensors_layout import OF_TORCH, storable
from bt_lightning.snapshot.state_files import lay_out_files, tensor_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.manifest import Manifest
    from bt_lightning.sharding.boxes import Box

    LayoutOf = Callable[[str, torch.Tensor], Layout | None]
    """Name in the files and the whole tensor -> how the ranks hold it; None: each has all of it."""


def mesh_layout(shape: Sequence[int], *cuts: int | tuple[int, bool] | None) -> Layout:
    """A layout on the mesh of the ranks 0, 1, ... of this shape, with a cut for each dimension.

    A cut is a dimension of the tensor, None for replicas, or (dimension, whether it is strided).
    """
    count = 1
    for length in shape:
        count *= length
    placements = [
        REPLICATED if cut is None else Placement(*cut) if isinstance(cut, tuple) else Placement(cut)
        for cut in cuts
    ]
    return Layout(tuple(shape), tuple(range(count)), tuple(placements))


def by_rows(world_size: int) -> LayoutOf:
    """FSDP2: tensors with a dimension are cut by rows over all ranks, uneven ones too."""
    rows = mesh_layout((world_size,), 0)
    return lambda name, tensor: rows if tensor.dim() else None


def hybrid(replicas: int, shards: int) -> LayoutOf:
    """HSDP: rows over `shards` ranks, each on `replicas` of them."""
    layout = mesh_layout((replicas, shards), None, 0)
    return lambda name, tensor: layout if tensor.dim() else None


def by_rows_and_columns(data: int, model: int) -> LayoutOf:
    """FSDP2 over tensor parallel: matrices are cut in both dimensions, the rest as replicas."""
    matrices = mesh_layout((data, model), 0, 1)
    others = mesh_layout((data, model), 0, None)

    def layout_of(name: str, tensor: torch.Tensor) -> Layout | None:
        del name
        return None if not tensor.dim() else matrices if tensor.dim() > 1 else others

    return layout_of


def write_sharded(
    root: Path,
    checkpoint_id: str,
    state: Mapping[str, Any],
    layout_of: LayoutOf | None = None,
    *,
    world_size: int = 4,
    own: Sequence[Mapping[str, Any]] = (),
    facts: Mapping[str, Any] | None = None,
    block_bytes: int | None = None,
) -> Manifest:
    """Commit `state` below `root` as `world_size` ranks would; `layout_of` is `by_rows` by default.

    Args:
        state: what Lightning's `dump_checkpoint` makes, with whole tensors: `state_dict`,
            `optimizer_states` by names of parameters, and the rest, which rank 0 writes. A tensor
            that is there by two names is tied.
        own: for each rank the tree of its `ranks/*.json`, `{"rank": ...}`; others have none.
        facts: of the manifest, in place of those of `state`.
        block_bytes: size of the blocks with digests; None: what a save has.
    """
    found = _Tensors({}, {}, {})
    tree = _replaced(state, found)
    layout_of = layout_of or by_rows(world_size)
    stored = {name: storable(tensor) for name, tensor in found.whole.items()}
    table = {
        name: HeldTensor(
            SAFETENSORS[each.dtype], tuple(each.shape), layout_of(name, found.whole[name])
        )
        for name, each in stored.items()
    }
    plan = WritePlan(merge([table], [0] * world_size))
    index = ShardIndex.of_plan(plan, found.tied)
    files = {path: shard_pieces(plan, rank, stored, path) for rank, path in index.files.items()}
    snapshot = lay_out_files(tree)
    files |= snapshot.files
    text = snapshot.small_files[TREE].decode()
    text = re.sub(
        r'"tensor of (?:[^"\\]|\\.)*"',
        lambda mark: json.dumps(found.nodes[json.loads(mark[0])]),
        text,
    )
    small = {TREE: text.encode(), SHARDS: index.to_bytes()}
    for rank in range(world_size):
        if rank >= len(own):
            continue
        laid = lay_out_files(own[rank])
        path = rank_file(rank)
        small[path] = laid.small_files[TREE]
        if STATE in laid.files:
            files[path.replace(".json", ".safetensors")] = laid.files[STATE]
    files |= {path: lambda data=data: [data] for path, data in small.items()}
    known = {
        "step": state.get("global_step", 0),
        "epoch": state.get("epoch", 0),
        "created_at": "2030-01-02T03:04:05+00:00",
        "origin": {"world_size": world_size, "shards": index.facts},
        **(facts or {}),
    }
    size = plan.block_bytes if block_bytes is None else block_bytes

    def described(entries: Sequence[FileEntry]) -> Manifest:
        again = tuple(_entry(each.path, files[each.path](), size) for each in entries)
        return ManifestFacts(**known).manifest(checkpoint_id, 1, again)

    return commit(root / checkpoint_id, root, files, described)


def _entry(path: str, pieces: Iterable[memoryview | bytes], block_bytes: int) -> FileEntry:
    hasher = Hasher(block_bytes)
    for piece in pieces:
        hasher.update(piece)
    return hasher.entry(path)


def shard_pieces(
    plan: WritePlan, rank: int, stored: Mapping[str, torch.Tensor], path: str
) -> Callable[[], Any]:
    """The bytes of a rank's file, as torch's `HuggingFaceStorageReader` reads it."""
    boxes = plan.boxes_of(rank)
    offsets = {name: {"saved_offsets": list(box.offsets)} for name, box in boxes.items()}
    metadata = {
        "DCP_SHARDING_INFO": json.dumps(offsets, separators=(",", ":")),
        "DCP_VERSION": "1.0",
        **OF_TORCH,
    }
    parts = {name: part_of(stored[name], box).contiguous() for name, box in boxes.items()}
    return tensor_file(path, (), parts, None, metadata).pieces


def part_of(tensor: torch.Tensor, box: Box) -> torch.Tensor:
    """The box of a whole tensor, a view."""
    return tensor[tuple(slice(a, b) for a, b in zip(box.offsets, box.ends, strict=True))]


@dataclass
class _Tensors:
    """The tensors of a state by their names in the files."""

    whole: dict[str, torch.Tensor]
    tied: dict[str, str]
    nodes: dict[str, dict[str, Any]]
    """What stands for a tensor while the tree is encoded -> the tree's reference to it."""
    first: dict[object, str] = field(default_factory=dict)
    """Identity of a tensor -> its first name."""

    def add(self, name: str, tensor: torch.Tensor) -> str:
        """What stands for it."""
        same = (tensor.data_ptr(), tensor.shape, tensor.dtype) if tensor.numel() else id(tensor)
        first = self.first.setdefault(same, name)
        if first == name:
            self.whole[name] = tensor
        else:
            self.tied[name] = first
        node = {"$": "tensor", "file": "shards", "name": self.tied.get(name, name)}
        if tensor.dtype not in SAFETENSORS:
            node["dtype"] = str(tensor.dtype).removeprefix("torch.")
        self.nodes[f"tensor of {name}"] = node
        return f"tensor of {name}"


def _replaced(state: Mapping[str, Any], found: _Tensors) -> dict[str, Any]:
    """The state with texts that stand for the tensors of its model and optimizers."""
    tree = dict(state)
    if "state_dict" in state:
        tree["state_dict"] = {
            name: found.add(f"state_dict.{name}", one) if isinstance(one, torch.Tensor) else one
            for name, one in state["state_dict"].items()
        }
    if "optimizer_states" in state:
        tree["optimizer_states"] = [
            {**one, "state": _entries(f"optimizer_{number}.state", one["state"], found)}
            for number, one in enumerate(state["optimizer_states"])
        ]
    return tree


def _entries(where: str, entries: Mapping[str, Any], found: _Tensors) -> dict[str, Any]:
    return {
        name: {
            key: found.add(f"{where}.{name}.{key}", one) if isinstance(one, torch.Tensor) else one
            for key, one in entry.items()
        }
        for name, entry in entries.items()
    }
