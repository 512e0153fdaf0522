"""Pickles a state as `torch.save` does: the structure in bytes, the storages beside it, uncopied.

A storage is what tensors are views of. Each is written once, whole, under a number, and the pickle
refers to it by that number; so views and strides come back as they were.

Pickling a tensor takes tens of microseconds, comparing it with that of the previous save one: the
first entry of the state (an optimizer's `state`) is pickled separately, as a group, and its bytes
are reused as long as the group does not change.
"""

from __future__ import annotations

import io
import pickle  # nothing is loaded with it
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from bt_lightning.errors import UnsupportedStateError
from bt_lightning.snapshot.encoding_cache import Fragment, comparison_with

LEAST_TENSORS: Final = 8
"""A group of fewer is not worth keeping: generators, say, which are new objects at each save."""
_PROTOCOL: Final = 2
_BEGIN, _STOP = b"\x80\x02", b"."
_EMPTY_DICT, _MARK, _SET_ITEMS = b"}", b"(", b"u"
_PLAIN: Final = (torch.Tensor, torch.nn.Parameter)
SHARDED: Final = ("DTensor", "ShardedTensor")
"""Classes of tensors of which a rank has a part."""
_NO_STORAGES: Final = {str, int, float, bool, type(None), tuple, list, dict, OrderedDict}
_KINDS: Final = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.int64: torch.LongStorage,
    torch.int32: torch.IntStorage,
    torch.int16: torch.ShortStorage,
    torch.int8: torch.CharStorage,
    torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
}
"""The class by which a pickle names the storage of a common dtype."""


def storage_name(number: int | str) -> str:
    """The name, in a file of `torch.save`, of the storage of this number."""
    return f"data/{number}"


@dataclass
class _Storages:
    """The storages of one pickle, in the order in which it names them."""

    keys: dict[int, str] = field(default_factory=dict)
    """Identity of a storage -> its number, as text."""
    dtypes: dict[int, torch.dtype] = field(default_factory=dict)
    """Address of a storage -> the dtype of its items."""
    flat: dict[str, torch.Tensor] = field(default_factory=dict)
    """Name of a storage -> all its bytes, as a contiguous tensor."""
    held: list[torch.UntypedStorage] = field(default_factory=list)
    """All storages, so that none gets the identity of another."""

    def following(self) -> _Storages:
        """Storages that continue after these, and know them."""
        return _Storages(dict(self.keys), dict(self.dtypes))


@dataclass(frozen=True, eq=False)
class PickledGroup:
    """The pickle of a group that the next save may have as well."""

    body: bytes
    """Opcodes that push the group on the stack of an unpickler."""
    storages: _Storages
    fragment: Fragment
    """The group's storages, and whether a value would be pickled alike."""
    whole: bool
    """Whether it is the whole state."""


@dataclass(frozen=True)
class PickledState:
    """A state as `torch.save` divides it."""

    data: bytes
    """`data.pkl`: everything but the bytes of the storages."""
    group: PickledGroup | None
    """What the next save may reuse; its storages come first."""
    others: dict[str, torch.Tensor]
    """Name -> storage, of all that are not in the group."""

    @property
    def storages(self) -> dict[str, torch.Tensor]:
        """Name -> storage, of all in the order of their numbers."""
        return self.others if self.group is None else {**self.group.storages.flat, **self.others}


def pickle_state(
    state: Any, path: str, known: PickledGroup | None = None, *, grouped: bool = True
) -> PickledState:
    """Pickle `state` for the file at `path`; copies no storage.

    `known` is the group of the previous save of that file. With `grouped=False` there is none.

    Raises:
        UnsupportedStateError: a value cannot be pickled, or is one rank's part of a tensor.
    """
    try:
        return (_with_group(state, path, known) if grouped else None) or _whole(state)
    except UnsupportedStateError:
        raise
    except Exception as error:
        msg = f"{path} cannot be pickled ({type(error).__name__}: {error}): keep it out of the file"
        raise UnsupportedStateError(msg) from error


def _whole(state: Any) -> PickledState:
    pickler = _Pickler(_Storages())
    return PickledState(_BEGIN + pickler.body(state) + _STOP, None, pickler.storages.flat)


def _with_group(state: Any, path: str, known: PickledGroup | None) -> PickledState | None:
    """Pickle the group of `state` by itself; None if it has none, or shares objects with it."""
    group = None
    if known is None or known.whole:
        group = _group(state, path, known, whole=True)
    if group is not None:
        return PickledState(_BEGIN + group.body + _STOP, group, {})
    if type(state) is not dict or not state:
        return None
    items = iter(state.items())
    key, first = next(items)
    group = _group(first, path, known, whole=False)
    if group is None:
        return None
    pickler = _Pickler(group.storages.following())
    parts = [_Pickler(_Storages()).body(key), group.body]
    for other, value in items:
        parts += [pickler.body(other), pickler.body(value)]
    if not pickler.objects.isdisjoint(map(id, _members(first))):
        return None
    data = b"".join((_BEGIN, _EMPTY_DICT, _MARK, *parts, _SET_ITEMS, _STOP))
    return PickledState(data, group, pickler.storages.flat)


def _group(
    value: Any, path: str, known: PickledGroup | None, *, whole: bool
) -> PickledGroup | None:
    """The pickle of `value`, of the previous save if it is the same; None if it is no group."""
    if not isinstance(value, dict):
        return None
    try:
        if known is not None and known.whole is whole and known.fragment.matches(value):
            return None if _has_attributes(_members(value)) else known
        matches = comparison_with(value)
    except RecursionError:  # it holds itself
        return None
    if matches is None or _has_attributes(_members(value)):
        return None
    pickler = _Pickler(_Storages())
    body = pickler.body(value)
    if len(pickler.storages.flat) < LEAST_TENSORS:
        return None
    fragment = Fragment(matches, "", {path: pickler.storages.flat}, {}, frozenset())
    return PickledGroup(body, pickler.storages, fragment, whole)


def _members(group: dict[Any, Any]) -> list[Any]:
    """All values of nested dicts, the dicts included."""
    found: list[Any] = [group]
    waiting = [group]
    while waiting:
        values = list(waiting.pop().values())
        found += values
        waiting += [value for value in values if isinstance(value, dict)]
    return found


def _has_attributes(members: list[Any]) -> bool:
    """Whether a script put attributes on a tensor."""
    return any(vars(each) for each in members if isinstance(each, torch.Tensor))


def _is_stock(tensor: torch.Tensor) -> bool:
    """Whether a tensor is nothing but a view of a storage in the memory of a CPU or of CUDA."""
    return (
        type(tensor) is torch.Tensor
        and (tensor.is_cpu or tensor.is_cuda)
        and tensor.layout is torch.strided
        and not (tensor.is_quantized or tensor.is_nested or tensor.is_neg())
        and not (tensor._backward_hooks or vars(tensor))
    )


class _Reference:
    """A storage, in the place of which the pickle has `parts`."""

    __slots__ = ("parts",)

    def __init__(self, parts: tuple[Any, ...]) -> None:
        self.parts = parts


class _Pickler(pickle.Pickler):
    """Pickles values one after the other; `storages` gets the storages of their tensors."""

    def __init__(self, storages: _Storages) -> None:
        self._buffer = io.BytesIO()
        super().__init__(self._buffer, _PROTOCOL)
        self.storages = storages
        self._owners: dict[int, torch.Tensor] = {}
        """Identity of a storage -> a tensor that is a view of it, with its version counter."""

    def body(self, value: Any) -> bytes:
        """The opcodes that push `value` on the stack of an unpickler."""
        self._buffer.seek(0)
        self._buffer.truncate()
        self.dump(value)
        return self._buffer.getvalue()[len(_BEGIN) : -len(_STOP)]

    @property
    def objects(self) -> frozenset[int]:
        """Identities of all values pickled so far that are more than a text or a number."""
        return frozenset(self.memo.copy())

    def reducer_override(self, value: Any) -> Any:
        """What pickle stores for a tensor: as without this, but faster."""
        if not isinstance(value, torch.Tensor):
            return NotImplemented
        self._note(value)
        kind = _KINDS.get(value.dtype)
        if kind is None or not _is_stock(value):
            return NotImplemented
        storage = value.untyped_storage()
        named = _Reference(self._reference(storage, value.dtype, kind, value.element_size()))
        shape, strides = tuple(value.shape), value.stride()
        hooks: OrderedDict[int, Any] = OrderedDict()
        offset = value.storage_offset()
        parts = (named, offset, shape, strides, value.requires_grad, hooks)
        return torch._utils._rebuild_tensor_v2, parts

    def _note(self, tensor: torch.Tensor) -> None:
        kind = type(tensor)
        if kind.__name__ in SHARDED:
            msg = (
                f"a {kind.__name__} is one rank's part of a larger tensor: save a full state dict"
                " instead"
            )
            raise UnsupportedStateError(msg)
        if kind not in _PLAIN or tensor.is_meta or tensor.layout is not torch.strided:
            return
        self._owners.setdefault(tensor.untyped_storage()._cdata, tensor)

    def persistent_id(self, value: Any) -> Any:
        """What stands in the pickle for a storage; None for all else."""
        kind = type(value)
        if kind is _Reference:
            return value.parts
        if kind in _NO_STORAGES:  # by far most
            return None
        if isinstance(value, torch.storage.TypedStorage):
            dtype = value.dtype
            legacy = getattr(torch, value._pickle_storage_type())  # type: ignore[no-untyped-call]
            return self._reference(value._untyped_storage, dtype, legacy, dtype.itemsize)
        if isinstance(value, torch.UntypedStorage):
            return self._reference(value, torch.uint8, torch.UntypedStorage, 1)
        return None

    def _reference(
        self, storage: torch.UntypedStorage, dtype: torch.dtype, kind: Any, item: int
    ) -> tuple[Any, ...]:
        """What a loader finds a storage of items of `item` bytes by."""
        key = self._key(storage, dtype)
        place = torch.serialization.location_tag(storage)
        return ("storage", kind, key, place, storage.nbytes() // item)

    def _key(self, storage: torch.UntypedStorage, dtype: torch.dtype) -> str:
        """The number of a storage, as text."""
        known = self.storages
        address = storage.data_ptr()
        if address and known.dtypes.setdefault(address, dtype) is not dtype:
            msg = "two tensors are views of the same bytes with different dtypes"
            raise UnsupportedStateError(msg)
        key = known.keys.get(storage._cdata)
        if key is None:
            key = known.keys[storage._cdata] = str(len(known.keys))
            owner = self._owners.get(storage._cdata)
            known.flat[storage_name(key)] = _flat(storage, owner)
            known.held.append(storage)
        return key


def _flat(storage: torch.UntypedStorage, owner: torch.Tensor | None) -> torch.Tensor:
    """All bytes of a storage, as a contiguous tensor that counts the writes to `owner`."""
    size = storage.nbytes()
    if owner is None or owner.is_quantized or size % owner.element_size():
        whole = torch.empty(0, dtype=torch.uint8, device=storage.device)
        return whole.set_(storage).clone()  # nothing tells when these bytes change
    plain = owner.detach()
    if plain.is_conj():
        plain = plain.conj()
    if plain.is_neg():
        plain = torch._neg_view(plain)
    if plain.nbytes == size and plain.is_contiguous():
        return plain
    return plain.as_strided((size // plain.element_size(),), (1,), 0)
