"""The base class of all definitions: it checks its fields, and serialises them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import Enum
from typing import Any, ClassVar, Final, Literal, TypeVar, get_type_hints

from typing_extensions import Self, dataclass_transform, override

from bt_lightning.errors import InvalidSettingError
from bt_lightning.truss_definitions.coercion import Coercion, is_of_truss, read, refuse_type

_BY_TRUSS_NAME: dict[str, type[Definition]] = {}
"""Our class by its name in truss."""
_PACKAGE: Final = f"{__name__.rpartition('.')[0]}."
_HINTS: dict[type[Definition], dict[str, Any]] = {}
"""Field types of each class, read when it is first used."""


@dataclass_transform(kw_only_default=True, field_specifiers=(field,))
class Definition:
    """A dataclass whose fields are checked in the constructor and at each assignment.

    All arguments are keywords. A field that holds another definition also takes an object of
    `truss_train`, or a mapping of its fields, and converts it.

    Raises:
        InvalidSettingError: a field is unknown, missing or invalid.
    """

    _truss_name: ClassVar[str | None] = None
    """The name of the class in truss, if it differs."""
    _lax: ClassVar[bool] = False
    """Whether truss converts values of this class's fields."""
    _fields: ClassVar[tuple[Field[Any], ...]] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._fields = fields(dataclass(init=False, kw_only=True)(cls))  # type: ignore[arg-type]
        if cls.__module__.startswith(_PACKAGE):  # a user's subclass is not of truss
            _BY_TRUSS_NAME[cls.__dict__.get("_truss_name") or cls.__name__] = cls

    def __init__(self, **values: object) -> None:
        self._fill(values, Coercion(lax=self._lax))

    @override
    def __setattr__(self, name: str, value: object) -> None:
        hints = _hints(type(self))
        if name not in hints:
            raise InvalidSettingError(_unknown_field_message(type(self), {name}))
        old = getattr(self, name)
        at = f"{type(self).__name__}.{name}"
        object.__setattr__(self, name, read(hints[name], value, at, Coercion(lax=self._lax)))
        try:
            self._check()
        except InvalidSettingError:
            object.__setattr__(self, name, old)
            raise

    @classmethod
    def read(cls, value: object, at: str, how: Coercion) -> Self:
        """Return `value` (a definition, a truss object or a mapping) as an object of this class.

        Raises:
            InvalidSettingError: it is something else, or a field is invalid.
        """
        if isinstance(value, cls) and not how.serialised:
            return value
        kind = own_class(type(value))
        if kind is not None:
            values = _attributes(value, kind)
        elif isinstance(value, Mapping):
            kind, values = cls._kind(value, at), dict(value)
        if kind is None or not issubclass(kind, cls):
            refuse_type(at, value, cls.__name__)
        new = kind.__new__(kind)
        new._fill(values, Coercion(serialised=how.serialised, lax=kind._lax))
        return new

    def model_dump(self, *, mode: Literal["python", "json"] = "python") -> Any:
        """The fields as plain values, in the form that truss sends to Baseten.

        Called as pydantic calls it, so that code written for objects of truss works on these.
        With `mode="python"`, enum members are kept.
        """
        return {
            item.name: _plain(getattr(self, item.name), mode)
            for item in self._fields
            if not item.metadata.get("excluded")
        }

    @classmethod
    def names(cls) -> list[str]:
        """The names of the fields."""
        return list(_hints(cls))

    @classmethod
    def takes(cls, values: Mapping[Any, object]) -> bool:
        """Whether a mapping has all required fields, and no unknown one."""
        return set(_required(cls)) <= values.keys() <= _hints(cls).keys()

    @classmethod
    def _kind(cls, values: Mapping[Any, object], at: str) -> type[Definition]:  # noqa: ARG003
        """The class that a mapping of fields describes."""
        return cls

    def _fill(self, values: Mapping[Any, object], how: Coercion) -> None:
        kind = type(self)
        values = kind._normalised(values)
        hints = _hints(kind)
        if unknown := values.keys() - hints.keys():
            raise InvalidSettingError(_unknown_field_message(kind, unknown))
        if missing := [name for name in _required(kind) if name not in values]:
            msg = f"{kind.__name__} needs {' and '.join(missing)}: give it by name"
            raise InvalidSettingError(msg)
        for item in self._fields:
            if item.name in values:
                at = f"{kind.__name__}.{item.name}"
                value = read(hints[item.name], values[item.name], at, how)
            else:
                value = _default(item)
            object.__setattr__(self, item.name, value)
        self._check()

    @classmethod
    def _normalised(cls, values: Mapping[Any, object]) -> Mapping[Any, object]:
        """`values` with old spellings replaced by the present ones."""
        return values

    def _check(self) -> None:
        """Raise InvalidSettingError where fields contradict each other."""


_D = TypeVar("_D", bound=Definition)


def as_definition(value: object, kind: type[_D]) -> _D:
    """Return `value` as a definition of this package, with every field checked.

    Args:
        value: a definition, an object of `truss_train`, or a mapping of its serialised form.
        kind: the class to return; `CheckpointRef` for any reference to a checkpoint.

    Raises:
        InvalidSettingError: `value` is something else, or a field is invalid.
    """
    return kind.read(value, kind.__name__, Coercion(serialised=True))


def own_class(kind: type) -> type[Definition] | None:
    """Our class for a class of ours or of truss; None for any other. Imports nothing."""
    for base in kind.__mro__:
        if issubclass(base, Definition):
            return base
        if is_of_truss(base) and base.__name__ in _BY_TRUSS_NAME:
            return _BY_TRUSS_NAME[base.__name__]
    return None


def _hints(kind: type[Definition]) -> dict[str, Any]:
    if kind not in _HINTS:
        hints = get_type_hints(kind, include_extras=True)
        _HINTS[kind] = {item.name: hints[item.name] for item in kind._fields}
    return _HINTS[kind]


def _required(kind: type[Definition]) -> list[str]:
    return [
        item.name
        for item in kind._fields
        if item.default is MISSING and item.default_factory is MISSING
    ]


def _default(item: Field[Any]) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()


def _attributes(value: object, kind: type[Definition]) -> dict[str, object]:
    """Fields by name, with fields of truss that are unknown here, to be refused."""
    names = {*_hints(kind), *getattr(value, "model_fields_set", ())}
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def _unknown_field_message(kind: type[Definition], names: set[Any]) -> str:
    known = list(_hints(kind))
    name = min(map(str, names))
    similar = difflib.get_close_matches(name, known, n=1)
    what = f"did you mean {similar[0]!r}?" if similar else f"expected {', '.join(known)}"
    return f"{kind.__name__} has no field {name!r}, {what}"


def _plain(value: Any, mode: Literal["python", "json"]) -> Any:
    if isinstance(value, Definition):
        return value.model_dump(mode=mode)
    if isinstance(value, Enum):
        return value.value if mode == "json" else value
    if isinstance(value, list):
        return [_plain(item, mode) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item, mode) for name, item in value.items()}
    return value
