"""Encodes a state whose tensors lie on several ranks: its tree, and what this rank has of it.

A DTensor anywhere, and each dense tensor among the weights and optimizer states, is one of the
*shards*: the tree names it only, and a plan of all ranks says who writes which box of it. Every
rank encodes its own state and comes to the same names.
"""

from __future__ import annotations

import json
import weakref
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from operator import attrgetter, is_
from typing import TYPE_CHECKING, Any, Final

import torch

from bt_lightning.errors import UnsupportedStateError
from bt_lightning.snapshot.dtypes import SAFETENSORS, is_quantized
from bt_lightning.snapshot.encode_tree import KIND, Encoder
from bt_lightning.snapshot.encoding_cache import Fragment
from bt_lightning.snapshot.local_shards import held_tensor, is_dtensor, is_part, local_part
from bt_lightning.snapshot.shared_tensors import TensorNames, WeightNames

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bt_lightning.sharding.structure import HeldTensor

SHARDS: Final = "shards"
"""The file of the tree's references to tensors of which each rank may write a part."""
OPTIMIZERS: Final = "optimizer_states"
_STATE: Final = "state"
_STATE_AT = 2
_SPEC, _DTYPE = map(attrgetter, ("_spec", "dtype"))


class ShardNames(TensorNames):
    """As `TensorNames`, with the shards: as they are in the state, DTensors and plain tensors."""

    def __init__(self, weights: WeightNames) -> None:
        super().__init__(weights)
        self.single[SHARDS] = {}

    @property
    def shards(self) -> dict[str, torch.Tensor]:
        """Name -> tensor, of those outside fragments."""
        return self.single[SHARDS]

    def store_shard(self, tensor: torch.Tensor, name: str) -> None:
        """Give a tensor this name.

        Raises:
            UnsupportedStateError: another one has it.
        """
        if any(name in names for names in self._of(SHARDS)):
            msg = (
                f"two tensors of the state are named {name}: expected keys whose paths, joined by"
                " dots, differ. Rename one"
            )
            raise UnsupportedStateError(msg)
        self.shards[name] = tensor

    def roll_back(self, savepoint: tuple[int, ...]) -> None:
        """As `TensorNames`: what was added since is stored by pickle, with its tensors.

        Raises:
            UnsupportedStateError: a shard was added: a pickle would have this rank's part only.
        """
        added = list(self.shards)[savepoint[-1] :]
        if added:
            msg = (
                f"{added[0]}, of which each rank has a part, lies in a value that only pickle can"
                " store: keep it out of that value, or that value out of the state"
            )
            raise UnsupportedStateError(msg)
        super().roll_back(savepoint)


class ShardEncoder(Encoder):
    """Encodes one state of one rank; `names` are `ShardNames`."""

    def __init__(
        self,
        weights: WeightNames = WeightNames(),  # noqa: B008 - it cannot change
        cached: Mapping[tuple[str, ...], Fragment] | None = None,
    ) -> None:
        super().__init__(weights, cached)
        self.shards = self.names = ShardNames(weights)

    def held(self) -> HeldState:
        """What this rank has of the shards."""
        return HeldState(tuple(self.names.fragments.values()), dict(self.shards.shards))

    def _fragment(self, value: Any, path: tuple[str, ...]) -> Fragment | None:
        matches = same_objects(value)
        if matches is None:
            return None
        encoder = ShardEncoder(self._weights)
        encoder.names.weights_key = self.names.weights_key
        tree = encoder._value(value, path)
        names = encoder.shards
        others = any(tensors for file, tensors in names.single.items() if file != SHARDS)
        if others or encoder.leftovers or encoder.classes or encoder.functions or encoder._waiting:
            return None
        text = json.dumps(tree, separators=(",", ":"))
        pointers = frozenset(names.data_pointers)
        fragment = Fragment(matches, text, names.single, names.refs, pointers)
        return fragment if self.names.fits(fragment) else None

    def _tensor(self, tensor: torch.Tensor, path: tuple[str, ...]) -> Any:
        if not (is_part(tensor) or (self._is_state(path) and _is_dense(tensor))):
            return super()._tensor(tensor, path)
        # alike on all ranks: those that have no item of a tensor know no address of it
        identity = (SHARDS, id(tensor))
        ref = self.names.find(identity)
        if ref is None:
            ref = {"file": SHARDS, "name": shard_name(path)}
            self.shards.store_shard(tensor, ref["name"])
            self.names.remember(identity, ref)
        node: dict[str, Any] = {KIND: "tensor", **ref}
        if tensor.dtype not in SAFETENSORS:
            node["dtype"] = str(tensor.dtype).removeprefix("torch.")
        return node

    def _is_state(self, path: tuple[str, ...]) -> bool:
        """Whether what is at `path` is one of the weights, or in the state of an optimizer."""
        if path[0] == self.names.weights_key:
            return True
        return path[0] == OPTIMIZERS and len(path) > _STATE_AT and path[_STATE_AT] == _STATE


def shard_name(path: tuple[str, ...]) -> str:
    """The name of a tensor in shard files: as torch names it in a checkpoint of DCP."""
    if path[0] == OPTIMIZERS and len(path) > 1:
        path = (f"optimizer_{path[1]}", *path[2:])
    return ".".join(path).encode("utf-8", "backslashreplace").decode()


def _is_dense(tensor: torch.Tensor) -> bool:
    return (
        type(tensor) in {torch.Tensor, torch.nn.Parameter}
        and tensor.layout is torch.strided
        and not tensor.is_meta
        and not tensor.is_nested
        and not is_quantized(tensor.dtype)
    )


@dataclass(frozen=True)
class HeldState:
    """The shards of one state, as this rank has them."""

    fragments: tuple[Fragment, ...]
    single: Mapping[str, torch.Tensor]
    """Name -> tensor, of those in no fragment."""

    @cached_property
    def table(self) -> dict[str, HeldTensor]:
        """Flat name -> what this rank has; ten microseconds for each.

        Raises:
            UnsupportedStateError: a DTensor is none that boxes describe.
        """
        layouts: dict[Any, Any] = {}
        found = {
            name: held_tensor(tensor, name, layouts)
            for fragment in self.fragments
            for name, tensor in fragment.tensors[SHARDS].items()
        }
        return {**found, **self._single_table}

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for states of one table that have the same groups; keeps no tensor alive."""
        return tuple(map(weakref.ref, self.fragments)), tuple(self._single_table.items())

    @cached_property
    def _single_table(self) -> dict[str, HeldTensor]:
        layouts: dict[Any, Any] = {}
        return {name: held_tensor(each, name, layouts) for name, each in self.single.items()}


def table_of(state: Mapping[str, Any]) -> dict[str, HeldTensor]:
    """Flat name -> what this rank has, of all shards of a state; on each rank, no collective.

    Raises:
        UnsupportedStateError: a tensor is none that boxes describe, or has no name of its own.
    """
    encoder = ShardEncoder()
    encoder.encode(state)
    return encoder.held().table


def same_objects(value: Any) -> Callable[[Any], bool] | None:
    """A function that tells whether another group has the same tensors in the same places.

    None unless `value` is a dict of tensors, or of dicts with tensors and plain values. Thousands
    of tensors take a millisecond: they are compared as objects, then by where their memory is.
    """
    leaves = _leaves(value)
    if leaves is None:
        return None
    keys, items = leaves
    tensors = [item for item in items if isinstance(item, torch.Tensor)]
    if not tensors or not all(map(_is_plain, items)):
        return None
    dtensors = [tensor for tensor in tensors if is_dtensor(tensor)]
    specs, parts = list(map(_SPEC, dtensors)), list(map(local_part, dtensors))
    plain = [tensor for tensor in tensors if not is_dtensor(tensor)]
    places, forms = _places([*parts, *plain]), _forms(plain)

    def same(other: Any) -> bool:
        found = _leaves(other)
        if found is None or found[0] != keys:
            return False
        if not all(map(is_, found[1], items)) and not all(map(_alike, found[1], items)):
            return False
        return (
            all(map(is_, map(_SPEC, dtensors), specs))
            and all(map(is_, map(local_part, dtensors), parts))
            and _places([*parts, *plain]) == places
            and _forms(plain) == forms
        )

    return same


def _leaves(value: Any) -> tuple[Any, list[Any]] | None:
    """The keys, comparable, and the items of a dict of items or of dicts of items."""
    if type(value) is not dict:
        return None
    inner = list(value.values())
    if inner and set(map(type, inner)) == {dict}:
        keys = list(chain.from_iterable(inner))
        items = list(chain.from_iterable(map(dict.values, inner)))
        return [list(value), list(map(len, inner)), keys], items
    return [list(value)], inner


def _is_plain(item: Any) -> bool:
    """Whether the encoding of an item can be kept: of a tensor, if its very memory is stored."""
    if not isinstance(item, torch.Tensor):
        return type(item) in {type(None), bool, int, float, str}
    part = local_part(item) if is_dtensor(item) else item
    if not _is_dense(part):
        return False
    # items that no file has are stored as bytes, which of other than these are a copy
    return part.dtype in SAFETENSORS or (
        part.is_contiguous() and not part.is_conj() and not part.is_neg()
    )


def _alike(one: Any, other: Any) -> bool:
    """Whether two items are encoded alike: the same tensor, or equal plain values."""
    if one is other:
        return True
    return type(one) is type(other) and type(one) in {int, float, str} and repr(one) == repr(other)


def _places(tensors: list[torch.Tensor]) -> list[Any]:
    """Where the bytes of tensors are: `.data` exchanges memory below the same object.

    With the number of items, for as many bytes; with the strides, in the same order.
    """
    contiguous = list(map(torch.Tensor.is_contiguous, tensors))
    strides = [t.stride() for t, is_so in zip(tensors, contiguous, strict=True) if not is_so]
    addresses = list(map(torch.Tensor.data_ptr, tensors))
    return [addresses, list(map(torch.Tensor.numel, tensors)), contiguous, strides]


def _forms(tensors: list[torch.Tensor]) -> list[Any]:
    """What `.data` exchanges besides: of a DTensor its `_spec` has them."""
    return [*map(torch.Tensor.size, tensors), *map(_DTYPE, tensors)]
