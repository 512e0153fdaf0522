"""The weights of a sharded checkpoint as a server reads them: files of whole tensors, by name."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    UnsupportedStateError,
)
from bt_lightning.manage.saved_tree import KIND, at, pairs_of, tensors_in, weights_entry
from bt_lightning.manage.verified_reads import read_file
from bt_lightning.path_layout import ADAPTER, ADAPTER_CONFIG, WEIGHTS
from bt_lightning.tensor_files.safetensors_header import in_file_order, safetensors_header

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints
    from bt_lightning.manage.tensor_bytes import StoredTensor
    from bt_lightning.manage.whole_tensors import PlacedTensors

MOST_FILE_BYTES: Final = 50_000_000_000
"""Tensors of a file; more are divided, as `save_pretrained` of transformers does."""
INDEX: Final = "model.safetensors.index.json"
_OF_TORCH: Final = {"format": "pt"}
_NAMED: Final = 5
"""Names of what is left out that are said."""
_LORA: Final = re.compile(
    r"(?:.*?\.)??(base_model\..+\.lora_(?:A|B|embedding_A|embedding_B))\.([^.]+)(\.weight)?"
)
_BESIDE_LORA: Final = (
    "modules_to_save",
    "use_dora",
    "trainable_token_indices",
    "target_parameters",
)


@dataclass(frozen=True, slots=True)
class TensorFilePlan:
    """A safetensors file that is to be written."""

    path: str
    header: bytes
    tensors: tuple[StoredTensor, ...]
    """Under their names in this file, in its order."""

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.header) + sum(one.tensor.size for one in self.tensors)


def plan_serving_files(
    source: JobCheckpoints, item: CheckpointItem, state: PlacedTensors, most_bytes: int
) -> tuple[list[TensorFilePlan], dict[str, bytes]]:
    """The files of weights to write, and small files beside them.

    Names are those of `model.safetensors` in a checkpoint of whole tensors: without the path to the
    model of transformers, tied weights once. With an adapter's configuration, the adapter's weights
    as `peft` reads them.

    Raises:
        CheckpointNotFoundError: the checkpoint has no such weights.
        CheckpointCorruptError: the tree refers to a tensor that is not there, or is damaged, as the
            adapter's configuration may be.
        UnsupportedStateError: an adapter of another form than LoRA's.
    """
    if item.manifest.entry(ADAPTER_CONFIG) is not None:
        return [_plan(ADAPTER, _adapter(source, item, _weights(state, "")))], {}
    prefix = item.manifest.weights_prefix
    named = _tied_once(_weights(state, prefix))
    whole = [_renamed(one, name.removeprefix(prefix)) for name, one in named.items()]
    if not whole:
        msg = f"{item.name} has no weights below {prefix!r} in its state_dict"
        raise CheckpointNotFoundError(msg)
    files = _divided(whole, most_bytes)
    if len(files) == 1:
        return [_plan(WEIGHTS, files[0])], {}
    count = len(files)
    plans = [
        _plan(f"model-{number:05d}-of-{count:05d}.safetensors", tensors)
        for number, tensors in enumerate(files, 1)
    ]
    return plans, {INDEX: _index(plans)}


def left_out_weights(tree: Any, prefix: str) -> list[str]:
    """What the weights of a state have and `model.safetensors` has not, or not so; for people."""
    named = {
        key: node if isinstance(node, dict) else {}
        for key, node in pairs_of(at(tree, weights_entry(tree)))
        if isinstance(key, str) and node is not None
    }
    inside = {key: node for key, node in named.items() if key.startswith(prefix)}
    tensors = {key: node for key, node in inside.items() if node.get(KIND) == "tensor"}
    refs = {_reference(node) for node in tensors.values()}
    others = [key for key in inside if key not in tensors]
    packed = [key for key, node in tensors.items() if node.get("dtype")]
    beside = [
        key for key, node in named.items() if key not in inside and _reference(node) not in refs
    ]
    found = []
    if others:
        found.append(f"{len(others)} values of the weights, no plain tensors: {shortened(others)}")
    if packed:
        found.append(f"the dtype of {len(packed)} weights, there as bytes: {shortened(packed)}")
    if beside:
        found.append(f"{len(beside)} weights beside the model {prefix}*: {shortened(beside)}")
    return found


def _reference(node: Mapping[str, Any]) -> tuple[str, str]:
    return str(node.get("file")), str(node.get("name"))


def shortened(names: Sequence[str]) -> str:
    """The first of these names."""
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _weights(state: PlacedTensors, prefix: str) -> dict[str, StoredTensor]:
    """The tensors of the state dictionary whose names there begin with `prefix`, by these names."""
    named = (
        (".".join(map(str, path)), node)
        for path, node in tensors_in(at(state.tree, weights_entry(state.tree)))
    )
    return {name: state.find(node) for name, node in named if name.startswith(prefix)}


def _tied_once(named: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Each tensor by the first of its names."""
    first: dict[int, str] = {}
    for name, one in named.items():
        first.setdefault(id(one), name)
    return {name: named[name] for name in first.values()}


def _divided(tensors: Sequence[StoredTensor], most_bytes: int) -> list[list[StoredTensor]]:
    """The tensors of each file, in the order of the state, so that a layer is in one file."""
    files: list[list[StoredTensor]] = [[]]
    size = 0
    for one in tensors:
        if files[-1] and size + one.tensor.size > most_bytes:
            files.append([])
            size = 0
        files[-1].append(one)
        size += one.tensor.size
    return files


def _plan(path: str, tensors: Iterable[StoredTensor]) -> TensorFilePlan:
    by_name = {one.tensor.name: one for one in tensors}
    ordered = in_file_order(one.tensor for one in by_name.values())
    header = safetensors_header(ordered, _OF_TORCH)
    return TensorFilePlan(path, header, tuple(by_name[one.name] for one in ordered))


def _index(plans: Sequence[TensorFilePlan]) -> bytes:
    size = sum(one.tensor.size for plan in plans for one in plan.tensors)
    places = {one.tensor.name: plan.path for plan in plans for one in plan.tensors}
    content = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
    return (json.dumps(content, indent=2) + "\n").encode()


def _adapter(
    source: JobCheckpoints, item: CheckpointItem, named: Mapping[str, StoredTensor]
) -> list[StoredTensor]:
    """The weights of a LoRA adapter under the names of `adapter_model.safetensors`."""
    config = _adapter_config(source, item)
    kind = config.get("peft_type", "LORA")
    beside = [name for name in _BESIDE_LORA if config.get(name)]
    beside += [f"bias {bias}" for bias in (config.get("bias", "none"),) if bias != "none"]
    if kind != "LORA" or beside:
        what = " and ".join([*([str(kind)] if kind != "LORA" else []), *beside])
        msg = (
            f"{item.name} is an adapter with {what}: its weights can be exported by `--to ckpt` or"
            " `dcp`, or saved by `save_pretrained` where the model is"
        )
        raise UnsupportedStateError(msg)
    matches = [(_LORA.fullmatch(name), one) for name, one in named.items()]
    found = [(match, one) for match, one in matches if match is not None]
    adapters = {match[2] for match, _ in found}
    if len(adapters) != 1:
        has = f"those of {', '.join(sorted(adapters))}" if adapters else "no LoRA weights"
        msg = f"{item.name} has {has} in its state_dict, expected one adapter's"
        raise CheckpointNotFoundError(msg)
    return [_renamed(one, f"{match[1]}{match[3] or ''}") for match, one in found]


def _adapter_config(source: JobCheckpoints, item: CheckpointItem) -> dict[str, Any]:
    entry = item.manifest.entry(ADAPTER_CONFIG)
    assert entry is not None, "it was looked for"
    data = read_file(source, item, entry)
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        msg = f"the checkpoint {item.name} is damaged: {ADAPTER_CONFIG} is no JSON ({error})"
        raise CheckpointCorruptError(msg) from error
    if not isinstance(config, dict):
        msg = f"the checkpoint {item.name} is damaged: {ADAPTER_CONFIG} holds no configuration"
        raise CheckpointCorruptError(msg)
    return config


def _renamed(one: StoredTensor, name: str) -> StoredTensor:
    return replace(one, tensor=replace(one.tensor, name=name))
