"""Conversion and checks of a value by the annotation of its field. Pure; knows no definition."""

from __future__ import annotations

import re
import types
from dataclasses import dataclass
from enum import Enum
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    NoReturn,
    Protocol,
    Union,
    get_args,
    get_origin,
    runtime_checkable,
)

from bt_lightning.errors import InvalidSettingError

TRUSS_ROOTS: Final = ("truss_train", "truss")
"""Top-level packages of Baseten's client, whose objects are read by the names of their classes."""

_WHOLE_NUMBER: Final = re.compile(r"[+-]?[0-9]+")
_URL_USER: Final = re.compile(r"//[^/@]*@")
"""User and password in a URL, which no error shows."""
_SCALARS: Final = {str: "text", int: "a whole number", bool: "True or False"}


@dataclass(frozen=True, slots=True)
class Coercion:
    """How strictly a value is read."""

    serialised: bool = False
    """Enum members may be given by value, and every object is rebuilt and checked."""
    lax: bool = False
    """Whether to convert as truss's older classes do: `"2"` to 2, a tuple to a list."""


@runtime_checkable
class Readable(Protocol):
    """A class that reads its own values."""

    @classmethod
    def read(cls, value: object, at: str, how: Coercion) -> Any:
        """Return `value` as an object of this class; `at` names the place in errors."""


def read(hint: Any, value: object, at: str, how: Coercion) -> Any:
    """Return `value` as the type `hint`, checked by the rules in the annotation.

    A rule is a function of a value of the right type: it returns what was expected and what to do,
    or None if the value is valid.

    Raises:
        InvalidSettingError: names `at`, the value and what was expected.
    """
    origin = get_origin(hint)
    if origin is Annotated:
        return _checked_by_rules(hint, value, at, how)
    if origin in {Union, types.UnionType}:
        return _read_union(get_args(hint), value, at, how)
    if origin is list:
        return _read_list(get_args(hint)[0], value, at, how)
    if origin is dict:
        return _read_dict(get_args(hint)[1], value, at, how)
    if origin is Literal:
        return _read_literal(get_args(hint), value, at)
    if hint in _SCALARS:
        return _read_scalar(hint, value, at, how)
    if issubclass(hint, Enum):
        return _read_enum(hint, value, at, how)
    assert issubclass(hint, Readable)
    return hint.read(value, at, how)


def refuse_type(at: str, value: object, expected: str) -> NoReturn:
    """Raise for a `value` of the wrong type, without showing it: it may be a secret."""
    msg = f"{at} is of type {type(value).__name__}, expected {expected}"
    raise InvalidSettingError(msg)


def is_of_truss(kind: type) -> bool:
    """Whether a class is of Baseten's client."""
    return str(kind.__module__).partition(".")[0] in TRUSS_ROOTS


def _checked_by_rules(hint: Any, value: object, at: str, how: Coercion) -> Any:
    plain, *rules = get_args(hint)
    value = read(plain, value, at, how)
    for rule in rules:
        if complaint := rule(value):
            msg = f"{at} is {_URL_USER.sub('//...@', repr(value))}, {complaint}"
            raise InvalidSettingError(msg)
    return value


def _read_union(options: tuple[Any, ...], value: object, at: str, how: Coercion) -> Any:
    """Read an optional value, or text or a definition: truss has no other unions."""
    if value is None and types.NoneType in options:
        return None
    kinds = [option for option in options if option is not types.NoneType]
    if len(kinds) == 1:
        return read(kinds[0], value, at, how)
    text, definition = kinds
    if value is None or isinstance(value, int | float | bytes):
        refuse_type(at, value, f"text or {definition.__name__}")
    return read(text if isinstance(value, str) else definition, value, at, how)


def _read_list(hint: Any, value: object, at: str, how: Coercion) -> list[Any]:
    if not isinstance(value, list | tuple if how.lax else list):
        refuse_type(at, value, "a list")
    return [read(hint, item, f"{at}[{index}]", how) for index, item in enumerate(value)]


def _read_dict(hint: Any, value: object, at: str, how: Coercion) -> dict[str, Any]:
    if not isinstance(value, dict):
        refuse_type(at, value, "a mapping of names to values")
    return {
        read(str, key, f"a name in {at}", how): read(hint, item, f"{at}[{key!r}]", how)
        for key, item in value.items()
    }


def _read_literal(allowed: tuple[Any, ...], value: object, at: str) -> Any:
    if value not in allowed or not isinstance(value, str):
        msg = f"{at} is {value!r}, expected {' or '.join(map(repr, allowed))}"
        raise InvalidSettingError(msg)
    return value


def _read_scalar(kind: type, value: object, at: str, how: Coercion) -> Any:
    if kind is str and isinstance(value, str):
        return _read_text(value, at)
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    if kind is int and how.lax:
        if isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value.strip()):
            return int(value)
        if isinstance(value, float) and value.is_integer():
            return int(value)
    refuse_type(at, value, _SCALARS[kind])


def _read_text(value: str, at: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        msg = f"{at} holds half a character (a lone surrogate), expected text that UTF-8 can write"
        raise InvalidSettingError(msg) from error
    return str.__str__(value)


def _read_enum(kind: type[Enum], value: object, at: str, how: Coercion) -> Enum:
    if isinstance(value, kind):
        return value
    if isinstance(value, Enum) and type(value).__name__ == kind.__name__:
        text: object = value.value if is_of_truss(type(value)) else None
    else:
        text = value if how.serialised or how.lax else None
    for member in kind:
        if isinstance(text, str) and member.value == text:
            return member
    shown = repr(value) if isinstance(value, str | Enum) else f"of type {type(value).__name__}"
    members = ", ".join(
        f"{kind.__name__}.{member.name}" for member in kind if member.name[0] != "_"
    )
    msg = f"{at} is {shown}, expected one of {members}"
    raise InvalidSettingError(msg)
