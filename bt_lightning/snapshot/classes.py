"""Classes that a file may name, and by which name; no file makes us import anything."""

from __future__ import annotations

import builtins
import dataclasses
import importlib
import sys
from collections import Counter, OrderedDict, deque
from typing import TYPE_CHECKING, Any

import torch

from bt_lightning.errors import UnsafeLoadError

if TYPE_CHECKING:
    from collections.abc import Iterable

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
_ATTRIBUTE_DICT = "fabric.utilities.data:AttributeDict"
_OMEGACONF = {"omegaconf.dictconfig:DictConfig", "omegaconf.listconfig:ListConfig"}


def class_name(kind: type) -> str:
    """The name that a file gives to a class: `module:qualname`."""
    return f"{kind.__module__}:{kind.__qualname__}"


def _table() -> dict[str, type]:
    """Harmless classes that hyperparameters commonly name."""
    kinds: list[type] = [getattr(builtins, name) for name in _BUILTINS]
    kinds += [type(None), Counter, OrderedDict, deque]
    for module in (torch.nn, torch.optim, torch.optim.lr_scheduler):
        found = [kind for kind in vars(module).values() if isinstance(kind, type)]
        kinds += [kind for kind in found if kind.__module__.startswith("torch.")]
    return {class_name(kind): kind for kind in kinds}


def _omegaconf(name: str) -> type | None:
    """The two container classes of OmegaConf: Lightning stores which one hyperparameters had."""
    if name not in _OMEGACONF:
        return None
    try:
        import omegaconf
    except ImportError:
        return None
    return getattr(omegaconf, name.partition(":")[2], None)


class ClassTable:
    """Turns names in files back into classes.

    Known are a built-in table, `torch.serialization.add_safe_globals`, and what the caller allows.
    With `trusted`, which is what `weights_only=False` asks for, any importable class is known.
    """

    def __init__(self, allowed: Iterable[type] = (), *, trusted: bool = False) -> None:
        self._trusted = trusted
        self._known = _table()
        for item in torch.serialization.get_safe_globals():
            kind = item[0] if isinstance(item, tuple) else item
            if isinstance(kind, type):
                self._known[class_name(kind)] = kind
        self._known.update({class_name(kind): kind for kind in allowed})

    def knows(self, kind: type) -> bool:
        """Whether `resolve` will return `kind` for its name."""
        return self._find(class_name(kind)) is kind

    def resolve(self, name: str, where: str) -> type:
        """The class that a file calls `name`; `where` in the state is named in the error.

        Raises:
            UnsafeLoadError: the class is not known, with what to do about it.
        """
        kind = self._find(name)
        if kind is None and self._trusted:
            kind = _import(name)
        if kind is None:
            short = name.rpartition(":")[2]
            msg = (
                f"{where} is of the class {name}, which this load does not trust. Allow it with"
                f" torch.serialization.add_safe_globals([{short}]), or load with"
                " weights_only=False if you trust the file"
            )
            raise UnsafeLoadError(msg)
        return kind

    def _find(self, name: str) -> type | None:
        found = self._known.get(name) or _omegaconf(name)
        if found is None and name.endswith(_ATTRIBUTE_DICT):  # the one of the other namespace
            twins = (kind for known, kind in self._known.items() if known.endswith(_ATTRIBUTE_DICT))
            found = next(twins, None)
        return found


def _import(name: str) -> type | None:
    module_name, _, qualname = name.partition(":")
    try:
        found: Any = sys.modules.get(module_name) or importlib.import_module(module_name)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError):
        return None
    return found if isinstance(found, type) else None


def is_plain_dataclass(value: object) -> bool:
    """Whether `value` is a dataclass instance that is its fields and nothing else."""
    kind = type(value)
    if not dataclasses.is_dataclass(kind):
        return False
    if any(base.__module__ == "builtins" and base is not object for base in kind.__mro__):
        return False  # a dict, say, with items besides its fields
    names = {field.name for field in dataclasses.fields(kind)}
    extra = set(getattr(value, "__dict__", ())) - names
    custom = any(_says(kind, method) for method in _PICKLING)
    return not custom and not extra and all(hasattr(value, name) for name in names)


def _says(kind: type, method: str) -> bool:
    """Whether a class itself says how it is pickled; what `dataclass` adds does not count."""
    found = getattr(kind, method, None)
    if found is None or found is getattr(object, method, None):
        return False
    return getattr(found, "__module__", None) != "dataclasses"


def is_namedtuple(kind: type) -> bool:
    """Whether `kind` was made by `namedtuple` or `typing.NamedTuple` and adds no state."""
    fields = getattr(kind, "_fields", None)
    return kind.__bases__ == (tuple,) and isinstance(fields, tuple)
