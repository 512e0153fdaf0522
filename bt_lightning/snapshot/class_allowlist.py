"""The allowlist of classes and functions that a checkpoint file may name.

A load never imports a module because a file names it, unless the caller trusts the file
(`weights_only=False`).
"""

from __future__ import annotations

import builtins
import dataclasses
import importlib
import sys
import types
from collections import Counter, OrderedDict, deque
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from bt_lightning.errors import UnsafeLoadError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_BUILTINS = [
    "bool",
    "bytearray",
    "bytes",
    "complex",
    "dict",
    "float",
    "frozenset",
    "int",
    "list",
    "object",
    "range",
    "set",
    "slice",
    "str",
    "tuple",
]
_PICKLING = (
    "__reduce__",
    "__reduce_ex__",
    "__getstate__",
    "__setstate__",
    "__getnewargs__",
    "__getnewargs_ex__",
)
_ACTIVATIONS = ("relu", "sigmoid", "softmax", "log_softmax", "tanh", "selu", "sin")
_DISPATCH = {
    "assert_int_or_pair",
    "boolean_dispatch",
    "handle_torch_function",
    "has_torch_function",
    "has_torch_function_unary",
    "has_torch_function_variadic",
}
"""Helpers in the namespace of torch.nn.functional that call their arguments: not allowed."""
_ATTRIBUTE_DICT = "fabric.utilities.data:AttributeDict"
_OMEGACONF = {"omegaconf.dictconfig:DictConfig", "omegaconf.listconfig:ListConfig"}


def class_name(kind: type) -> str:
    """The name of a class in files: `module:qualname`."""
    return f"{kind.__module__}:{kind.__qualname__}"


def _table() -> dict[str, type]:
    """Safe classes that hyperparameters commonly name, by `class_name`."""
    kinds: list[type] = [getattr(builtins, name) for name in _BUILTINS]
    kinds += [type(None), Counter, OrderedDict, deque]
    for module in (torch.nn, torch.optim, torch.optim.lr_scheduler):
        found = [kind for kind in vars(module).values() if isinstance(kind, type)]
        kinds += [kind for kind in found if kind.__module__.startswith("torch.")]
    return {class_name(kind): kind for kind in kinds}


@cache
def _plain_functions() -> dict[str, Callable[..., Any]]:
    """Functions of torch without side effects (losses, activations), by name."""
    found = {f"torch:{name}": getattr(torch, name) for name in _ACTIVATIONS}
    for module in (torch.nn.functional, torch.nn.init):
        for name, value in vars(module).items():
            plain = is_function(value) and not name.startswith("_")
            if plain and name not in _DISPATCH:
                found[f"{module.__name__}:{name}"] = value
    return found


def is_function(value: object) -> bool:
    """Whether `value` is a function in Python or C; a bound method is none."""
    if isinstance(value, types.BuiltinFunctionType):
        owner = value.__self__
        return owner is None or isinstance(owner, types.ModuleType | type)
    return isinstance(value, types.FunctionType)


def function_name(value: Any) -> str | None:
    """The name of a function in files, `module:qualname`; None if it cannot be looked up."""
    for name, known in _plain_functions().items():
        if known is value:
            return name
    module, qualname = value.__module__, value.__qualname__
    if not isinstance(module, str) or _follow(sys.modules.get(module), qualname) is not value:
        return None  # a lambda or a nested function
    return f"{module}:{qualname}"


def _follow(found: Any, qualname: str) -> Any:
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def _omegaconf(name: str) -> type | None:
    """A container class of OmegaConf: Lightning stores which one the hyperparameters had."""
    if name not in _OMEGACONF:
        return None
    try:
        import omegaconf
    except ImportError:
        return None
    return getattr(omegaconf, name.partition(":")[2], None)


class ClassTable:
    """Resolves names in files to classes and functions.

    Allowed are a built-in table, `torch.serialization.add_safe_globals`, `allowed` and `held`
    (objects that the process has already, by name). With `trusted` (`weights_only=False`) any
    importable class or function is allowed.
    """

    def __init__(
        self,
        allowed: Iterable[object] = (),
        held: Mapping[str, object] | None = None,
        *,
        trusted: bool = False,
    ) -> None:
        self._trusted = trusted
        self._known: dict[str, Any] = {**(held or {}), **_plain_functions(), **_table()}
        safe = (each[0] if isinstance(each, tuple) else each for each in _safe_globals())
        for item in (*safe, *allowed):
            name = class_name(item) if isinstance(item, type) else None
            if name is None and is_function(item):
                name = function_name(item)
            if name is not None:
                self._known[name] = item

    def knows(self, value: object) -> bool:
        """Whether this class or function can be resolved from its name."""
        name = class_name(value) if isinstance(value, type) else function_name(value)
        return name is not None and self._find(name) is value

    def resolve(self, name: str, where: str) -> type:
        """The class `name` of a file; `where` is the path in the state, for the error.

        Raises:
            UnsafeLoadError: the class is not allowed; the text says how to allow it.
        """
        kind = self._find(name)
        if kind is None and self._trusted:
            kind = _import(name)
        if not isinstance(kind, type):
            raise UnsafeLoadError(_unknown(name, where, "of the class"))
        return kind

    def function(self, name: str, where: str) -> Callable[..., Any]:
        """The function `name` of a file; raises as `resolve` does."""
        found = self._find(name)
        if found is None and self._trusted:
            found = _import(name)
        if not is_function(found):
            raise UnsafeLoadError(_unknown(name, where, "the function"))
        return found  # type: ignore[no-any-return]

    def _find(self, name: str) -> Any:
        found = self._known.get(name) or _omegaconf(name)
        if found is None and name.endswith(_ATTRIBUTE_DICT):  # lightning or pytorch_lightning
            same = (kind for known, kind in self._known.items() if known.endswith(_ATTRIBUTE_DICT))
            found = next(same, None)
        return found


def _safe_globals() -> list[Any]:
    return torch.serialization.get_safe_globals()


def _unknown(name: str, where: str, what: str) -> str:
    short = name.rpartition(":")[2]
    return (
        f"{where} is {what} {name}, which this load does not trust. Allow it with"
        f" torch.serialization.add_safe_globals([{short}]), or load with weights_only=False if you"
        " trust the file"
    )


def _import(name: str) -> Any:
    module_name, _, qualname = name.partition(":")
    try:
        found: Any = sys.modules.get(module_name) or importlib.import_module(module_name)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError):
        return None
    return found


def is_plain_dataclass(value: object) -> bool:
    """Whether the fields of a dataclass instance are its whole state."""
    kind = type(value)
    if not dataclasses.is_dataclass(kind):
        return False
    if any(base.__module__ == "builtins" and base is not object for base in kind.__mro__):
        return False  # a subclass of dict, for example, has items besides its fields
    names = {field.name for field in dataclasses.fields(kind)}
    extra = set(getattr(value, "__dict__", ())) - names
    custom = any(_defines(kind, method) for method in _PICKLING)
    return not custom and not extra and all(hasattr(value, name) for name in names)


def _defines(kind: type, method: str) -> bool:
    """Whether a class defines a pickling method; those that `dataclass` adds do not count."""
    found = getattr(kind, method, None)
    if found is None or found is getattr(object, method, None):
        return False
    return getattr(found, "__module__", None) != "dataclasses"


def is_namedtuple(kind: type) -> bool:
    """Whether `kind` comes from `namedtuple` or `typing.NamedTuple` and adds no state."""
    fields = getattr(kind, "_fields", None)
    return kind.__bases__ == (tuple,) and isinstance(fields, tuple)


def is_plain_module(value: object) -> bool:
    """Whether the attributes of an `nn.Module` are its whole state.

    False with hooks, with a shared module or parameter, with slots, or with a class that defines
    how it is pickled.
    """
    if not isinstance(value, torch.nn.Module):
        return False
    kinds = [kind for kind in type(value).__mro__ if kind not in torch.nn.Module.__mro__]
    if any(name in vars(kind) for kind in kinds for name in (*_PICKLING, "__slots__", "__new__")):
        return False
    inside = [module for _, module in value.named_modules(remove_duplicate=False)]
    weights = [each for _, each in value.named_parameters(remove_duplicate=False)]
    once = len(set(map(id, inside))) == len(inside) and len(set(map(id, weights))) == len(weights)
    return once and not any(held for name, held in vars(value).items() if is_hooks(name))


def is_hooks(name: str) -> bool:
    """Whether an attribute of an `nn.Module` holds its hooks."""
    return name.startswith("_") and "_hook" in name
