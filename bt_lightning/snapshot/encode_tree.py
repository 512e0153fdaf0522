"""A Lightning checkpoint as a typed JSON tree, tensors by name, and what fits neither.

The forms of the tree are written down in docs/format.md; `restore.decode_tree` reads them back.
Types are matched exactly: a subclass may carry what the form would lose, so it goes to the
leftovers.
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
from bt_lightning.snapshot.encoding_cache import Fragment, is_group, watch, weights_key
from bt_lightning.snapshot.safetensors_layout import storable
from bt_lightning.snapshot.shared_tensors import TensorNames
from bt_lightning.snapshot.third_party_values import (
    is_plain_config,
    is_short_numbers,
    is_text,
    numpy_node,
    surrogates,
)
from bt_lightning.snapshot.typed_values import FORMS, pairs

if TYPE_CHECKING:
    from collections.abc import Mapping

KIND: Final = "$"
"""The key that marks an object of the tree as a typed value."""
_DEPTH = 100
"""Deeper values are encoded apart: each level costs several frames of Python's stack."""
_WIDE_BITS = 4096
"""Longer whole numbers are written in base 16: Python limits the length of decimal ones."""


class _NotRepresentableError(Exception):
    """A value has no form in the tree; it becomes a leftover."""


class Encoder:
    """Encodes one checkpoint; `names` and `leftovers` fill up as `encode` walks it.

    `known` are the fragments of the save before, by path; `names` has those of this one.
    """

    def __init__(
        self, weights_prefix: str = "", known: Mapping[tuple[str, ...], Fragment] | None = None
    ) -> None:
        self.names = TensorNames(weights_prefix)
        self.leftovers: dict[str, object] = {}
        """Path in the state -> a value that the tree cannot hold."""
        self.classes: dict[type, str] = {}
        """Class named in the tree -> path of the first value that has it."""
        self.functions: dict[Any, str] = {}
        """The same of functions."""
        self._prefix = weights_prefix
        self._known = known
        self.deep: list[dict[str, Any]] = []
        """Values that lie too deep for the tree, each with its path; they may hold deeper ones."""
        self._waiting: deque[tuple[object, tuple[str, ...], frozenset[int]]] = deque()
        self._begun = self._base = 0
        self._open: set[int] = set()
        self._token = secrets.token_hex(16)  # no text of a state can be taken for a placeholder

    def encode(self, checkpoint: Mapping[str, Any]) -> Any:
        """The tree of a checkpoint; `text` puts the fragments where it has placeholders.

        Raises:
            UnsupportedStateError: a tensor of it is one rank's part of a larger one.
        """
        self.names.weights_key = weights_key(checkpoint)
        tree = self._value(checkpoint, ())
        while self._waiting:
            value, path, above = self._waiting.popleft()
            self._begun, self._base, self._open = self._begun + 1, len(path), set(above)
            self.deep.append({"at": path, "v": self._value(value, path)})
        return tree

    def text(self, tree: Any, more: Mapping[str, Any]) -> str:
        """The content of `trainer.json`, ASCII; `more` stands beside the tree."""
        document = {"tree": tree, **({"deep": self.deep} if self.deep else {}), **more}
        text = json.dumps(document, separators=(",", ":"))
        for path, fragment in self.names.fragments.items():
            text = text.replace(json.dumps(self._placeholder(path)), fragment.text, 1)
        return text

    def _placeholder(self, path: tuple[str, ...]) -> str:
        return f"{self._token}:{'.'.join(path)}"

    def _group(
        self, value: Any, path: tuple[str, ...], known: Mapping[tuple[str, ...], Fragment]
    ) -> Any:
        """A value of which the text may be known from the save before."""
        before = known.get(path)
        if before is None or not self.names.fits(before) or not before.same(value):
            before = self._fragment(value, path)
            if before is None:
                return self._value(value, path)
        self.names.add(path, before)
        return self._placeholder(path)

    def _fragment(self, value: Any, path: tuple[str, ...]) -> Fragment | None:
        """Encode a group by itself; None if its encoding depends on anything else."""
        same = watch(value)
        if same is None:
            return None
        alone = Encoder(self._prefix)
        tree = alone._value(value, path)
        text = json.dumps(tree, separators=(",", ":"))
        names = alone.names
        found = Fragment(same, text, names.single, names.refs, frozenset(names.places))
        more = alone.leftovers or alone.classes or alone.functions or alone._waiting
        whole = not more and self.names.fits(found)
        return found if whole else None

    def _value(self, value: Any, path: tuple[str, ...]) -> Any:
        kind = type(value)
        if self._known is not None and is_group(path):
            known, self._known = self._known, None  # not inside itself
            try:
                return self._group(value, path, known)
            finally:
                self._known = known
        if value is None or kind is bool:
            return value
        if kind is int:
            wide = value.bit_length() > _WIDE_BITS
            return {KIND: "int", "v": hex(value)} if wide else value
        if kind is str:
            return value if is_text(value) else {KIND: "str", "v": surrogates(value)}
        if kind is float:
            return value if math.isfinite(value) else {KIND: "float", "v": str(value)}
        if isinstance(value, torch.Tensor):
            return self._or_leftover(self._tensor, value, path)
        if id(value) in self._open:
            return self._leftover(value, path)
        if len(path) > self._base + _DEPTH:
            self._waiting.append((value, path, frozenset(self._open)))
            return {KIND: "deep", "v": self._begun + len(self._waiting)}
        self._open.add(id(value))
        try:
            return self._or_leftover(self._compound, value, path)
        finally:
            self._open.discard(id(value))

    def _or_leftover(self, encode: Any, value: object, path: tuple[str, ...]) -> Any:
        tensors, leftovers, waiting = self.names.mark(), len(self.leftovers), len(self._waiting)
        try:
            return encode(value, path)
        except _NotRepresentableError:
            self.names.back_to(tensors)  # they go with the whole
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
            if is_short_numbers(value):
                return value  # ids of parameters, indices of a sampler: thousands
            return [sub(item, str(index)) for index, item in enumerate(value)]
        if kind is dict:
            if all(type(key) is str and is_text(key) for key in value) and KIND not in value:
                return {key: sub(item, key) for key, item in value.items()}
            return {KIND: "dict", "v": pairs(value, sub)}
        if (form := FORMS.get(kind)) is not None:
            return {KIND: form.kind, **form.there(value, sub)}
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
        """What is no data, by its name; None for what is."""
        if isinstance(value, type):
            return {KIND: "class", "class": self._class(value, path)}
        if is_function(value):
            return {KIND: "function", "name": self._function(value, path)}
        if kind is functools.partial and not vars(value):
            parts = {"func": value.func, "args": value.args, "keywords": value.keywords}
            return {KIND: "partial", **{name: sub(part, name) for name, part in parts.items()}}
        return None

    def _module(self, value: Any, kind: type, sub: Any, path: tuple[str, ...]) -> Any:
        """A loss, say, that somebody keeps as a hyperparameter: whole, or a leftover as a whole."""
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
        """Values of packages that need not be installed, told by where their class comes from."""
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
            return name  # known to every table, though no module has it
        found: Any = sys.modules.get(kind.__module__)
        for part in kind.__qualname__.split("."):
            found = getattr(found, part, None)
        if found is not kind:
            raise _NotRepresentableError  # made inside a function: no name leads to it
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
            except NotImplementedError as error:  # torch itself cannot copy it
                raise _NotRepresentableError from error
            ref = self.names.store(plain, path)
            self.names.keep(identity, ref)
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
