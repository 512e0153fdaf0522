"""Encodes a checkpoint dictionary as a typed JSON tree, named tensors, and leftovers for pickle.

docs/format.md defines the tree; `restore.decode_tree` reads it. Types are matched exactly: a
subclass may have state that the encoding would lose, so it becomes a leftover.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import math
import secrets
import sys
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Any, Final

import torch

from bt_lightning.errors import UnsupportedStateError
from bt_lightning.snapshot.class_allowlist import (
    class_name,
    function_name,
    is_function,
    is_hooks,
    is_namedtuple,
    is_plain_dataclass,
    is_plain_module,
)
from bt_lightning.snapshot.dtypes import SAFETENSORS, is_quantized
from bt_lightning.snapshot.encoding_cache import Fragment, comparison_with, is_group, weights_key
from bt_lightning.snapshot.plain_values import is_json
from bt_lightning.snapshot.safetensors_layout import storable
from bt_lightning.snapshot.shared_tensors import TensorNames, WeightNames
from bt_lightning.snapshot.third_party_values import (
    encode_surrogates,
    is_plain_config,
    is_short_numbers,
    is_text,
    is_texts,
    numpy_node,
)
from bt_lightning.snapshot.typed_values import FORMS, pairs

if TYPE_CHECKING:
    from collections.abc import Mapping

KIND: Final = "$"
"""The key that marks an object of the tree as a typed value."""
_DEPTH = 100
"""Deeper values are encoded separately: each level takes several frames of Python's stack."""
_WIDE_BITS = 4096
"""Longer whole numbers are written in base 16: Python limits the length of decimal ones."""


class _NotRepresentableError(Exception):
    """A value cannot be encoded in the tree; it becomes a leftover."""


class Encoder:
    """Encodes one checkpoint; `encode` fills `names`, `leftovers`, `classes` and `functions`.

    `cached` are the fragments of the previous save, by path; `names` gets those of this one.
    """

    def __init__(
        self,
        weights: WeightNames = WeightNames(),  # noqa: B008 - it cannot change
        cached: Mapping[tuple[str, ...], Fragment] | None = None,
    ) -> None:
        self.names = TensorNames(weights)
        self.leftovers: dict[str, object] = {}
        """Path in the state -> a value that the tree cannot represent."""
        self.classes: dict[type, str] = {}
        """Class named in the tree -> path of the first value of that class."""
        self.functions: dict[Any, str] = {}
        """Function named in the tree -> path of the first value that is that function."""
        self._weights = weights
        self._cached = cached
        self.deep: list[dict[str, Any]] = []
        """Values deeper than the tree allows, each with its path; they may refer to later ones."""
        self._waiting: deque[tuple[object, tuple[str, ...], frozenset[int]]] = deque()
        self._begun = self._base = 0
        self._ancestors: set[int] = set()
        self._token = secrets.token_hex(16)  # no text of a state can equal a placeholder

    def encode(self, checkpoint: Mapping[str, Any]) -> Any:
        """The tree of a checkpoint, with placeholders that `text` replaces by the fragments.

        Raises:
            UnsupportedStateError: a tensor is one rank's shard of a larger one.
        """
        self.names.weights_key = weights_key(checkpoint)
        tree = self._value(checkpoint, ())
        while self._waiting:
            value, path, above = self._waiting.popleft()
            self._begun, self._base, self._ancestors = self._begun + 1, len(path), set(above)
            self.deep.append({"at": path, "v": self._value(value, path)})
        return tree

    def text(self, tree: Any, more: Mapping[str, Any]) -> str:
        """The content of `trainer.json`, ASCII; `more` are entries next to the tree."""
        document = {"tree": tree, **({"deep": self.deep} if self.deep else {}), **more}
        text = json.dumps(document, separators=(",", ":"))
        for path, fragment in self.names.fragments.items():
            text = text.replace(json.dumps(self._placeholder(path)), fragment.text, 1)
        return text

    def _placeholder(self, path: tuple[str, ...]) -> str:
        return f"{self._token}:{'.'.join(path)}"

    def _group(
        self, value: Any, path: tuple[str, ...], cached: Mapping[tuple[str, ...], Fragment]
    ) -> Any:
        """Encode a group, or reuse its fragment of the previous save if nothing changed."""
        earlier = cached.get(path)
        if earlier is None or not self.names.fits(earlier) or not earlier.matches(value):
            earlier = self._fragment(value, path)
            if earlier is None:
                return self._value(value, path)
        self.names.add(path, earlier)
        return self._placeholder(path)

    def _fragment(self, value: Any, path: tuple[str, ...]) -> Fragment | None:
        """Encode a group separately; None if its encoding depends on other values."""
        matches = comparison_with(value)
        if matches is None:
            return None
        encoder = Encoder(self._weights)
        tree = encoder._value(value, path)
        text = json.dumps(tree, separators=(",", ":"))
        names = encoder.names
        fragment = Fragment(matches, text, names.single, names.refs, frozenset(names.data_pointers))
        other_output = encoder.leftovers or encoder.classes or encoder.functions or encoder._waiting
        whole = not other_output and self.names.fits(fragment)
        return fragment if whole else None

    def _value(self, value: Any, path: tuple[str, ...]) -> Any:
        kind = type(value)
        if self._cached is not None and is_group(path):
            cached, self._cached = self._cached, None  # not inside itself
            try:
                return self._group(value, path, cached)
            finally:
                self._cached = cached
        if value is None or kind is bool:
            return value
        if kind is int:
            wide = value.bit_length() > _WIDE_BITS
            return {KIND: "int", "v": hex(value)} if wide else value
        if kind is str:
            return value if is_text(value) else {KIND: "str", "v": encode_surrogates(value)}
        if kind is float:
            return value if math.isfinite(value) else {KIND: "float", "v": str(value)}
        if isinstance(value, torch.Tensor):
            return self._or_leftover(self._tensor, value, path)
        if (kind is dict or kind is list) and is_json(value, KIND, _WIDE_BITS):
            return value
        if id(value) in self._ancestors:
            return self._leftover(value, path)
        if len(path) > self._base + _DEPTH:
            self._waiting.append((value, path, frozenset(self._ancestors)))
            return {KIND: "deep", "v": self._begun + len(self._waiting)}
        self._ancestors.add(id(value))
        try:
            return self._or_leftover(self._compound, value, path)
        finally:
            self._ancestors.discard(id(value))

    def _or_leftover(self, encode: Any, value: object, path: tuple[str, ...]) -> Any:
        names, leftovers, waiting = self.names.savepoint(), len(self.leftovers), len(self._waiting)
        try:
            return encode(value, path)
        except _NotRepresentableError:
            self.names.roll_back(names)  # the leftover contains them
            while len(self._waiting) > waiting:
                self._waiting.pop()
            for key in list(self.leftovers)[leftovers:]:
                del self.leftovers[key]
            return self._leftover(value, path)

    def _leftover(self, value: object, path: tuple[str, ...]) -> dict[str, str]:
        key = ".".join(path)
        while key in self.leftovers:
            key += "'"
        self.leftovers[key] = value
        return {KIND: "leftover", "v": key}

    def _compound(self, value: Any, path: tuple[str, ...]) -> Any:
        def sub(item: Any, label: str) -> Any:
            return self._value(item, (*path, label))

        kind = type(value)
        if kind is list:
            if is_short_numbers(value) or is_texts(value):
                return value  # thousands of parameter ids or names, or sampler indices: no walk
            return [sub(item, str(index)) for index, item in enumerate(value)]
        if kind is dict:
            if all(type(key) is str and is_text(key) for key in value) and KIND not in value:
                return {key: sub(item, key) for key, item in value.items()}
            return {KIND: "dict", "v": pairs(value, sub)}
        if (form := FORMS.get(kind)) is not None:
            return {KIND: form.kind, **form.encode(value, sub)}
        if kind is defaultdict:
            factory = value.default_factory
            if factory is not None and not isinstance(factory, type):
                raise _NotRepresentableError
            return {KIND: "defaultdict", "factory": sub(factory, "factory"), "v": pairs(value, sub)}
        if isinstance(value, enum.Enum):
            name = None if isinstance(value, enum.Flag) else value.name
            content = sub(value.value, "value") if name is None else None
            return {KIND: "enum", "class": self._class(kind, path), "name": name, "value": content}
        if isinstance(value, tuple) and is_namedtuple(kind):
            items = [sub(item, name) for name, item in zip(kind._fields, value, strict=True)]
            return {KIND: "namedtuple", "class": self._class(kind, path), "v": items}
        if is_plain_dataclass(value):
            names = [field.name for field in dataclasses.fields(value)]
            items = [[name, sub(getattr(value, name), name)] for name in names]
            return {KIND: "dataclass", "class": self._class(kind, path), "v": items}
        if is_plain_module(value):
            return self._module(value, kind, sub, path)
        return self._code(value, kind, sub, path) or self._foreign(value, kind, sub, path)

    def _code(self, value: Any, kind: type, sub: Any, path: tuple[str, ...]) -> Any:
        """A class, a function or a partial, by name; None for any other value."""
        if isinstance(value, type):
            return {KIND: "class", "class": self._class(value, path)}
        if is_function(value):
            return {KIND: "function", "name": self._function(value, path)}
        if kind is functools.partial and not vars(value):
            parts = {"func": value.func, "args": value.args, "keywords": value.keywords}
            return {KIND: "partial", **{name: sub(part, name) for name, part in parts.items()}}
        return None

    def _module(self, value: Any, kind: type, sub: Any, path: tuple[str, ...]) -> Any:
        """An `nn.Module` kept as a hyperparameter, such as a loss; a leftover if any part is."""
        leftovers = len(self.leftovers)
        own = {name: part for name, part in vars(value).items() if not is_hooks(name)}
        node = {KIND: "module", "class": self._class(kind, path), "v": pairs(own, sub)}
        if len(self.leftovers) > leftovers:
            raise _NotRepresentableError
        return node

    def _function(self, value: Any, path: tuple[str, ...]) -> str:
        name = function_name(value)
        if name is None:
            raise _NotRepresentableError
        self.functions.setdefault(value, ".".join(path))
        return name

    def _foreign(self, value: Any, kind: type, sub: Any, path: tuple[str, ...]) -> Any:
        """Values of optional packages, recognised by the module of their class."""
        module = kind.__module__
        if module.startswith("numpy"):
            node = numpy_node(value, lambda content: self.names.store(content, path))
            if node is None:
                raise _NotRepresentableError
            return {KIND: node.pop("kind"), **node}
        if module.startswith("omegaconf") and kind.__name__ in {"DictConfig", "ListConfig"}:
            return self._omegaconf(value, kind, sub, path)
        if kind.__name__ == "AttributeDict" and module.split(".")[0].startswith(
            ("lightning", "pyt")
        ):
            return {KIND: "attributedict", "class": class_name(kind), "v": pairs(value, sub)}
        raise _NotRepresentableError

    def _class(self, kind: type, path: tuple[str, ...]) -> str:
        name = class_name(kind)
        if kind is type(None):
            return name  # every table has it, although no module defines it
        found: Any = sys.modules.get(kind.__module__)
        for part in kind.__qualname__.split("."):
            found = getattr(found, part, None)
        if found is not kind:
            raise _NotRepresentableError  # a local class cannot be looked up by name
        self.classes.setdefault(kind, ".".join(path))
        return name

    def _omegaconf(self, value: Any, kind: type, sub: Any, path: tuple[str, ...]) -> Any:
        from omegaconf import OmegaConf

        if not is_plain_config(value):
            raise _NotRepresentableError
        typed = OmegaConf.get_type(value)
        flags = {name: value._get_node_flag(name) for name in ("struct", "readonly")}
        return {
            KIND: "omegaconf",
            "class": kind.__name__,
            "v": sub(OmegaConf.to_container(value, resolve=False), "content"),
            "type": self._class(typed, path) if typed not in {dict, list, None} else None,
            "flags": {name: flag for name, flag in flags.items() if flag is not None},
        }

    def _tensor(self, tensor: torch.Tensor, path: tuple[str, ...]) -> Any:
        kind = type(tensor)
        if kind.__name__ in {"DTensor", "ShardedTensor"}:
            msg = (
                f"{'.'.join(path)} is a {kind.__name__}, one rank's part of a larger tensor: save a"
                " full state dict (state_dict_type='full', save_distributed_checkpoint=False)"
            )
            raise UnsupportedStateError(msg)
        opaque = kind not in {torch.Tensor, torch.nn.Parameter} or tensor.is_meta
        if opaque or tensor.is_nested or is_quantized(tensor.dtype):
            raise _NotRepresentableError
        if tensor.layout is torch.sparse_coo:
            parts = {"indices": tensor._indices(), "values": tensor._values()}
            node = {KIND: "sparse_coo", "coalesced": tensor.is_coalesced()}
        elif tensor.layout in {torch.sparse_csr, torch.sparse_bsr}:
            parts = {"compressed": tensor.crow_indices(), "plain": tensor.col_indices()}
            node = {KIND: "sparse_compressed", "layout": str(tensor.layout)}
        elif tensor.layout in {torch.sparse_csc, torch.sparse_bsc}:
            parts = {"compressed": tensor.ccol_indices(), "plain": tensor.row_indices()}
            node = {KIND: "sparse_compressed", "layout": str(tensor.layout)}
        elif tensor.layout is torch.strided:
            return self._dense(tensor, path)
        else:
            raise _NotRepresentableError
        parts.setdefault("values", tensor.values() if "values" not in parts else parts["values"])
        stored = {name: self._dense(part.detach(), (*path, name)) for name, part in parts.items()}
        return {**node, "size": list(tensor.shape), **stored, **_flags(tensor)}

    def _dense(self, tensor: torch.Tensor, path: tuple[str, ...]) -> dict[str, Any]:
        identity = (
            tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(),
            tensor.is_conj(), tensor.is_neg(),
        )  # fmt: skip
        ref = self.names.find(identity) if tensor.numel() else None
        if ref is None:
            try:
                plain = storable(tensor)
            except NotImplementedError as error:  # torch cannot copy this tensor
                raise _NotRepresentableError from error
            ref = self.names.store(plain, path)
            self.names.remember(identity, ref)
        node: dict[str, Any] = {KIND: "tensor", **ref}
        if tensor.dtype not in SAFETENSORS:
            node["dtype"] = str(tensor.dtype).removeprefix("torch.")
        return {**node, **_flags(tensor)}


def _flags(tensor: torch.Tensor) -> dict[str, bool]:
    flags = {
        "parameter": type(tensor) is torch.nn.Parameter,
        "requires_grad": tensor.requires_grad,
    }
    return {name: True for name, flag in flags.items() if flag}
