"""Lays out one rank's part of a sharded state as files.

They are its boxes of tensors, what is its own, and on rank 0 all else.

The header of a shard file is as torch's `HuggingFaceStorageReader` reads it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import torch

from bt_lightning.errors import UnsupportedStateError
from bt_lightning.path_layout import LEFTOVERS, STATE, TREE, rank_file, shard_file
from bt_lightning.path_layout import SHARDS as SHARDS_FILE
from bt_lightning.sharding.shard_index import ShardIndex
from bt_lightning.snapshot.encode_tree import Encoder
from bt_lightning.snapshot.encoding_cache import Fragment
from bt_lightning.snapshot.local_shards import is_dtensor, stored_part
from bt_lightning.snapshot.pickle_leftovers import leftover_digests, pickle_leftovers, type_name
from bt_lightning.snapshot.safetensors_layout import storable
from bt_lightning.snapshot.shard_encoding import SHARDS, ShardEncoder, shard_name
from bt_lightning.snapshot.shared_tensors import TENSOR_FILES
from bt_lightning.snapshot.state_files import EncodingCache, Snapshot, TensorFile, tensor_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bt_lightning.sharding.boxes import Box
    from bt_lightning.sharding.write_plan import WritePlan
    from bt_lightning.snapshot.shard_encoding import HeldState

_DCP_VERSION: Final = "1.0"
"""Of the format in which torch's DCP writes safetensors files."""
PACKAGE: Final = "bt_lightning"
"""Key of a state dictionary for what this package adds."""
OWN: Final = "rank"
"""Key below it for what is one rank's own."""


class PlannedPart:
    """What one rank writes by a plan; kept as long as the structure of the state is this one."""

    def __init__(self, plan: WritePlan, rank: int) -> None:
        self.plan = plan
        self.rank = rank
        self.path = shard_file(rank, plan.structure.world_size)
        """The shard file of this rank."""
        self.boxes: Mapping[str, Box] = plan.boxes_of(rank)
        """Name -> what it writes of that tensor."""
        self._indexes: dict[tuple[tuple[str, str], ...], tuple[ShardIndex, bytes]] = {}

    @property
    def size(self) -> int:
        """Bytes of the tensors that this rank writes."""
        return self.plan.sizes[self.rank]

    def index(self, tied: Mapping[str, str]) -> tuple[ShardIndex, bytes]:
        """The index of all ranks, and its file; for rank 0."""
        key = tuple(tied.items())
        if key not in self._indexes:
            index = ShardIndex.of_plan(self.plan, tied)
            self._indexes = {key: (index, index.to_bytes())}
        return self._indexes[key]

    @cached_property
    def metadata(self) -> Mapping[str, str]:
        """The metadata of the shard file, as torch's reader wants it."""
        offsets = {name: {"saved_offsets": list(box.offsets)} for name, box in self.boxes.items()}
        return {
            "DCP_SHARDING_INFO": json.dumps(offsets, separators=(",", ":")),
            "DCP_VERSION": _DCP_VERSION,
            "format": "pt",
        }

    def part_of(self, fragment: Fragment) -> Fragment:
        """The tensors of a group that this rank writes."""
        written, wholes = self.written(fragment.tensors[SHARDS])
        return Fragment(
            fragment.matches, "", {self.path: written}, {}, fragment.data_pointers, wholes
        )

    def written(
        self, tensors: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Of these tensors of the state: what this rank writes, and the DTensors it is part of.

        Raises:
            UnsupportedStateError: this rank's part is not the box that the placements give it.
        """
        parts, wholes = {}, {}
        for name, tensor in tensors.items():
            box = self.boxes.get(name)
            if box is None:
                continue
            part = storable(stored_part(tensor, name))
            if tuple(part.shape) != box.sizes:
                msg = (
                    f"rank {self.rank} has {list(part.shape)} of {name} {list(tensor.shape)}:"
                    f" expected {list(box.sizes)}, which its placements give. Redistribute it"
                )
                raise UnsupportedStateError(msg)
            parts[name] = part
            if is_dtensor(tensor):
                wholes[name] = tensor
        return parts, wholes


@dataclass(frozen=True)
class EncodedPart:
    """A state of this rank, encoded; which of it is written is decided by all ranks."""

    held: HeldState
    encoder: ShardEncoder
    tree: Any
    own: Any
    """What is this rank's own."""
    tied: Mapping[str, str]
    """Other names of weights in shard files -> the name under which they are stored."""


def encode_part(state: Mapping[str, Any], cache: EncodingCache | None = None) -> EncodedPart:
    """Encode the state of this rank; copies no tensor.

    Raises:
        UnsupportedStateError: a tensor has parts that no box describes, or no name of its own.
    """
    rest, own = _without_own(state)
    encoder = ShardEncoder(cached={} if cache is None else cache.fragments)
    tree = encoder.encode(rest)
    tied = _tied(rest, encoder.names.weights_key)
    return EncodedPart(encoder.held(), encoder, tree, own, tied)


def lay_out_part(
    encoded: EncodedPart, planned: PlannedPart, cache: EncodingCache | None = None
) -> Snapshot:
    """The files of this rank's part of a save; copies no tensor.

    Raises:
        UnsupportedStateError: a value can be neither encoded nor pickled, or a part is no box.
    """
    cache = EncodingCache() if cache is None else cache
    encoder = encoded.encoder
    files = _shard_file(encoded, planned, cache)
    own, small = own_files(encoded.own, planned.rank, cache)
    files.update(own)
    plan = planned.plan
    part = Snapshot(
        files, small, (), (), {}, fingerprint=plan.fingerprint, block_bytes=plan.block_bytes
    )
    if planned.rank:
        return part
    content, dropped = _tree_files(encoder, encoded.tree, TREE, LEFTOVERS)
    small.update(content)
    small[SHARDS_FILE] = planned.index(encoded.tied)[1]
    files.update(_unsharded_files(encoder, cache))
    kinds = [(path, type_name(value)) for path, value in encoder.leftovers.items()]
    return replace(
        part,
        leftovers=tuple(pair for pair in kinds if pair[0] not in dropped),
        dropped=tuple(pair for pair in kinds if pair[0] in dropped),
        classes=encoder.classes,
        functions=encoder.functions,
    )


def _shard_file(
    encoded: EncodedPart, planned: PlannedPart, cache: EncodingCache
) -> dict[str, TensorFile]:
    """The boxes of this rank; no file if it writes none."""
    fragments = encoded.encoder.names.fragments
    kept = set(cache.keep(fragments))
    fixed: list[Fragment] = []
    others: dict[str, torch.Tensor] = {}
    wholes: dict[str, torch.Tensor] = {}
    for path, fragment in fragments.items():
        if fragment in kept:
            fixed.append(cache.part(path, fragment, planned, planned.part_of))
        else:
            part = planned.part_of(fragment)
            others.update(part.tensors[planned.path])
            wholes.update(part.wholes)
    single, of_single = planned.written(encoded.held.single)
    others.update(single)
    wholes.update(of_single)
    used = tuple(fragment for fragment in fixed if fragment.tensors[planned.path])
    if not used and not others:
        return {}
    file = tensor_file(planned.path, used, others, cache, planned.metadata)
    return {planned.path: TensorFile(file.path, file.plan, used, others, wholes=wholes)}


def _unsharded_files(encoder: Encoder, cache: EncodingCache) -> dict[str, TensorFile]:
    """The tensors of rank 0 that no other rank has: of callbacks, loops, generators."""
    single = encoder.names.single
    return {
        path: tensor_file(path, (), single[path], cache)
        for path in TENSOR_FILES.values()
        if single[path]
    }


def own_files(
    own: Any, rank: int, cache: EncodingCache
) -> tuple[dict[str, TensorFile], dict[str, bytes]]:
    """What is this rank's own: a tree as `trainer.json`, and beside it its tensors and leftovers.

    The tree has one entry, `rank`; in it, the file `state` is the safetensors file of this name.
    """
    if own is None:
        return {}, {}
    path = rank_file(rank)
    encoder = Encoder()
    tree = encoder.encode({OWN: own})
    small, _ = _tree_files(encoder, tree, path, path.removesuffix(".json") + ".pt")
    tensors = encoder.names.single[STATE]
    if not tensors:
        return {}, small
    beside = path.removesuffix(".json") + ".safetensors"
    return {beside: tensor_file(beside, (), tensors, cache)}, small


def _tree_files(
    encoder: Encoder, tree: Any, path: str, leftovers: str
) -> tuple[dict[str, bytes], list[str]]:
    """A tree and the values that only pickle can hold, path -> content; which were dropped."""
    pickled, dropped = pickle_leftovers(encoder.leftovers)
    beside: dict[str, Any] = {"dropped": dropped}
    if pickled is not None:
        beside["pickled"] = leftover_digests(encoder.leftovers, len(pickled))
    files = {path: encoder.text(tree, beside).encode("ascii")}
    return (files if pickled is None else {**files, leftovers: pickled}), dropped


def _tied(state: Mapping[str, Any], key: str) -> dict[str, str]:
    """Other names of weights in shard files -> the name under which they are stored."""
    weights = state.get(key)
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    if not isinstance(weights, dict) or len(set(map(id, weights.values()))) == len(weights):
        return found  # as in most models, told in a tenth of the time
    for name, tensor in weights.items():
        stored = first.setdefault(id(tensor), name)
        if stored is not name and isinstance(tensor, torch.Tensor):
            found[shard_name((key, name))] = shard_name((key, stored))
    return found


def _without_own(state: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """The state without what is this rank's own, and that; neither is changed."""
    added = state.get(PACKAGE)
    if not isinstance(added, dict) or OWN not in added:
        return dict(state), None
    rest = {key: value for key, value in added.items() if key != OWN}
    return {**state, PACKAGE: rest}, added[OWN]
