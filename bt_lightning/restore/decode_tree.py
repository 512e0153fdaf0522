"""Decodes the typed tree of `trainer.json`. Classes are looked up by name; none of their code runs.

The counterpart of `snapshot.encode_tree`; docs/format.md defines the tree.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import functools
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch

from bt_lightning.errors import CheckpointCorruptError, UnsafeLoadError
from bt_lightning.restore.numpy_values import decode_array, decode_dtype, decode_scalar
from bt_lightning.restore.unloaded_value import UnloadedValue
from bt_lightning.snapshot.class_allowlist import ClassTable, is_namedtuple, is_plain_module
from bt_lightning.snapshot.dtypes import plain_dtype
from bt_lightning.snapshot.encode_tree import KIND
from bt_lightning.snapshot.pickle_leftovers import HYPER_PARAMETERS
from bt_lightning.snapshot.typed_values import BY_KIND

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bt_lightning.restore.unpickle_leftovers import Leftovers


_MADE_ON_HOST = ("numpy.ndarray", "sparse_coo", "sparse_compressed")


class Decoder:
    """Decodes one tree. `tensors`: file label -> name -> tensor; `move` moves one."""

    def __init__(
        self,
        tensors: Mapping[str, Mapping[str, torch.Tensor]],
        leftovers: Leftovers,
        classes: ClassTable,
        *,
        move: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
    ) -> None:
        self._move = move
        self._tensors = tensors
        self._classes = classes
        self._tensor_cache: dict[tuple[Any, ...], torch.Tensor] = {}
        self._path: list[str] = []
        self._deep: dict[int, Any] = {}
        self.not_loaded: list[str] = []
        """Paths of hyperparameters that were left out: their classes are not allowed."""
        self._kinds: dict[str, Callable[[dict[str, Any]], Any]] = {
            "float": lambda node: float(node["v"]),
            "int": lambda node: int(node["v"], 16),
            "str": lambda node: base64.b64decode(node["v"], validate=True).decode(
                "utf-8", "surrogatepass"
            ),
            "dict": self._dict,
            "defaultdict": self._defaultdict,
            "attributedict": self._attributedict,
            "enum": self._enum,
            "namedtuple": self._namedtuple,
            "dataclass": self._dataclass,
            "class": self._class,
            "function": self._function,
            "partial": self._partial,
            "module": self._module,
            "omegaconf": self._omegaconf,
            "numpy.dtype": lambda node: decode_dtype(node["v"]),
            "numpy.scalar": decode_scalar,
            "numpy.ndarray": self._numpy_array,
            "tensor": self._tensor,
            "sparse_coo": self._sparse_coo,
            "sparse_compressed": self._sparse_compressed,
            "deep": lambda node: self._deep[node["v"]],
            "leftover": lambda node: leftovers.value(str(node["v"])),
        }

    def decode(self, tree: object, file: str, deep: object = ()) -> Any:
        """The value of `tree`; `file` is the name of the file, for errors.

        `deep` are the separately encoded parts, each after those that refer to it.

        Raises:
            UnsafeLoadError: the tree has a class or a leftover that is not allowed.
            CheckpointCorruptError: the tree is malformed.
        """
        try:
            for number, part in reversed(list(enumerate(_parts(deep), 1))):
                self._path = [str(label) for label in part["at"]]
                self._deep[number] = self._value(part["v"])
            self._path = []
            return self._value(tree)
        except (CheckpointCorruptError, UnsafeLoadError):
            raise
        except Exception as error:  # a malformed node may make a constructor raise anything
            where = ".".join(self._path) or "the top"
            msg = f"{file} is damaged at {where}: {type(error).__name__} {error}"
            raise CheckpointCorruptError(msg) from error

    def _value(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self._value(item) for item in node]
        if not isinstance(node, dict):
            return node
        if KIND not in node:
            return {key: self._at(key, item) for key, item in node.items()}
        kind = node[KIND]
        try:
            if kind in self._kinds:
                return self._kinds[kind](node)
            return BY_KIND[kind].decode(node, self._value)
        except UnsafeLoadError as error:
            if not self._path or self._path[0] not in HYPER_PARAMETERS:
                raise
            self.not_loaded.append(".".join(self._path))
            return UnloadedValue(self.not_loaded[-1], str(error))

    def _at(self, label: str, node: Any) -> Any:
        self._path.append(label)
        value = self._value(node)
        self._path.pop()
        return value

    def _pairs(self, node: dict[str, Any]) -> list[tuple[Any, Any]]:
        keys = [self._value(key) for key, _ in node["v"]]
        return [
            (key, self._at(str(key), item)) for key, (_, item) in zip(keys, node["v"], strict=True)
        ]

    def _dict(self, node: dict[str, Any]) -> dict[Any, Any]:
        return dict(self._pairs(node))

    def _defaultdict(self, node: dict[str, Any]) -> defaultdict[Any, Any]:
        return defaultdict(self._value(node["factory"]), self._pairs(node))

    def _attributedict(self, node: dict[str, Any]) -> dict[Any, Any]:
        kind = self._class(node)
        if not issubclass(kind, dict):
            msg = f"{kind} is no dict"
            raise TypeError(msg)
        value = dict.__new__(kind)
        dict.update(value, self._pairs(node))
        return value

    def _class(self, node: dict[str, Any]) -> type:
        return self._classes.resolve(str(node["class"]), ".".join(self._path) or "the checkpoint")

    def _enum(self, node: dict[str, Any]) -> enum.Enum:
        kind = self._class(node)
        if not issubclass(kind, enum.Enum):
            msg = f"{kind} is no Enum"
            raise TypeError(msg)
        return kind[node["name"]] if node["name"] is not None else kind(self._value(node["value"]))

    def _namedtuple(self, node: dict[str, Any]) -> Any:
        kind = self._class(node)
        if not is_namedtuple(kind):
            msg = f"{kind} is no namedtuple"
            raise TypeError(msg)
        return kind._make(self._list(node["v"]))  # type: ignore[attr-defined]

    def _dataclass(self, node: dict[str, Any]) -> Any:
        kind = self._class(node)
        if not dataclasses.is_dataclass(kind):
            msg = f"{kind} is no dataclass"
            raise TypeError(msg)
        fields = {field.name for field in dataclasses.fields(kind)}
        value = object.__new__(kind)
        for name, item in node["v"]:
            if name not in fields:
                msg = f"{kind} has no field {name!r}"
                raise ValueError(msg)
            object.__setattr__(value, name, self._at(name, item))
        return value

    def _function(self, node: dict[str, Any]) -> Callable[..., Any]:
        where = ".".join(self._path) or "the checkpoint"
        return self._classes.function(str(node["name"]), where)

    def _partial(self, node: dict[str, Any]) -> functools.partial[Any]:
        func, args = self._at("func", node["func"]), self._at("args", node["args"])
        return functools.partial(func, *args, **self._at("keywords", node["keywords"]))

    def _module(self, node: dict[str, Any]) -> torch.nn.Module:
        kind = self._class(node)
        if not issubclass(kind, torch.nn.Module):
            msg = f"{kind} is no nn.Module"
            raise TypeError(msg)
        value = object.__new__(kind)
        torch.nn.Module.__init__(value)  # no code of the class itself runs
        vars(value).update({str(name): part for name, part in self._pairs(node)})
        if not is_plain_module(value):
            msg = f"a {kind} with state besides its attributes"
            raise TypeError(msg)
        return value

    def _omegaconf(self, node: dict[str, Any]) -> Any:
        try:
            from omegaconf import OmegaConf
        except ImportError as error:
            msg = f"{'.'.join(self._path)} is a config of omegaconf, which is not installed"
            raise UnsafeLoadError(msg) from error
        content = self._value(node["v"])
        if not isinstance(content, dict | list):
            msg = f"a config made of {type(content).__name__}"
            raise TypeError(msg)
        if node["type"] is None:
            return OmegaConf.create(content, flags=node["flags"])
        kind = self._class({"class": node["type"]})
        typed = OmegaConf.merge(OmegaConf.structured(kind), content)
        for name, flag in node["flags"].items():
            OmegaConf.set_readonly(typed, flag) if name == "readonly" else OmegaConf.set_struct(
                typed, flag
            )
        return typed

    def _numpy_array(self, node: dict[str, Any]) -> Any:
        return decode_array(node, self._tensors[node["v"]["file"]][node["v"]["name"]])

    def _list(self, node: Any) -> list[Any]:
        if not isinstance(node, list):
            msg = f"expected a list, found {node!r}"
            raise TypeError(msg)
        return [self._value(item) for item in node]

    def _tensor(self, node: dict[str, Any], *, move: bool = True) -> torch.Tensor:
        flags = (bool(node.get("parameter")), bool(node.get("requires_grad")))
        key = (node["file"], node["name"], node.get("dtype"), *flags, move)
        if key not in self._tensor_cache:
            tensor = self._tensors[node["file"]][node["name"]]
            if "dtype" in node:
                dtype = plain_dtype(node["dtype"])
                if dtype is None:
                    msg = f"this torch has no dtype {node['dtype']!r}"
                    raise ValueError(msg)
                shape = tensor.shape[:-1]
                tensor = tensor.reshape(-1).view(dtype).reshape(shape)
            self._tensor_cache[key] = _flagged(self._move(tensor) if move else tensor, *flags)
        return self._tensor_cache[key]

    def _dense_part(self, node: dict[str, Any]) -> torch.Tensor:
        """A dense part of a sparse tensor, on the host, where its invariants are checked."""
        if node.get(KIND) != "tensor":
            msg = "a part of a sparse tensor is no tensor"
            raise TypeError(msg)
        return self._tensor(node, move=False)

    def _sparse(self, node: dict[str, Any], tensor: torch.Tensor) -> torch.Tensor:
        flags = (bool(node.get("parameter")), bool(node.get("requires_grad")))
        return _flagged(self._move(tensor), *flags)

    def _sparse_coo(self, node: dict[str, Any]) -> torch.Tensor:
        tensor = torch.sparse_coo_tensor(
            self._dense_part(node["indices"]),
            self._dense_part(node["values"]),
            node["size"],
            is_coalesced=node["coalesced"],
            check_invariants=True,
            device="cpu",
        )
        return self._sparse(node, tensor)

    def _sparse_compressed(self, node: dict[str, Any]) -> torch.Tensor:
        layout = BY_KIND["torch.layout"].decode({"v": node["layout"]}, self._value)
        tensor = torch.sparse_compressed_tensor(
            self._dense_part(node["compressed"]),
            self._dense_part(node["plain"]),
            self._dense_part(node["values"]),
            node["size"],
            layout=layout,
            check_invariants=True,
            device="cpu",
        )
        return self._sparse(node, tensor)


def _parts(deep: object) -> list[Any]:
    if not isinstance(deep, list | tuple):
        msg = "the entry 'deep' is no list"
        raise TypeError(msg)
    return list(deep)


def names_needed_on_host(tree: object) -> set[tuple[str, str]]:
    """(file label, name) of the tensors that decoding needs on the host, whatever `move` does.

    numpy arrays use their memory, and the invariants of sparse tensors are checked on the host.
    """
    found: set[tuple[str, str]] = set()
    rest: list[tuple[object, bool]] = [(tree, False)]
    while rest:
        node, wanted = rest.pop()
        if isinstance(node, list):
            rest += [(item, wanted) for item in node]
        elif isinstance(node, dict):
            wanted = wanted or node.get(KIND) in _MADE_ON_HOST
            if wanted and isinstance(node.get("name"), str) and isinstance(node.get("file"), str):
                found.add((node["file"], node["name"]))
            rest += [(item, wanted) for item in node.values()]
    return found


def _flagged(tensor: torch.Tensor, parameter: bool, grad: bool) -> torch.Tensor:  # noqa: FBT001
    if parameter:
        return torch.nn.Parameter(tensor, requires_grad=grad)
    return (
        tensor.detach().requires_grad_() if grad else tensor
    )  # `detach`: a view cannot require grad
