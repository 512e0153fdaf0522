"""Checks of what users pass as arguments; each returns the value in the type that is used.

All raise `InvalidSettingError`, with the name of the argument, what it is, and what was expected.
"""

from __future__ import annotations

import math
import operator
import os
from datetime import timedelta
from numbers import Real
from typing import TYPE_CHECKING, Any, NoReturn

from bt_lightning.errors import InvalidSettingError
from bt_lightning.fit_ledger import check_fit_name
from bt_lightning.store.interface import redact

if TYPE_CHECKING:
    from collections.abc import Sequence


def _refuse(name: str, value: object, expected: str) -> NoReturn:
    msg = f"{name} is {_shown(value)}, expected {expected}"
    raise InvalidSettingError(msg)


def _shown(value: object) -> str:
    if isinstance(value, timedelta):
        return str(value)
    return redact(repr(value)) if isinstance(value, str | int | float) else _kind(value)


def _kind(value: object) -> str:
    """Not the value: a dictionary may hold a password."""
    return f"of the type {type(value).__name__}"


def one_of(name: str, value: Any, choices: Sequence[str]) -> Any:
    """One of some texts."""
    if not isinstance(value, str) or value not in choices:
        _refuse(name, value, f"one of {', '.join(map(repr, choices))}")
    return value


def flag(name: str, value: Any) -> bool:
    """True or False: of a text, or of None, nobody can tell which was meant."""
    if isinstance(value, bool):
        return value
    _refuse(name, value, "True or False")


def whole(name: str, value: Any, least: int) -> int:
    """A whole number, a number of numpy included, of at least `least`."""
    try:
        found = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        found = None
    if found is None or found < least:
        _refuse(name, value, f"a whole number of at least {least}")
    return found


def number(name: str, value: Any, expected: str) -> float:
    """A finite number; `expected` says what else is asked of it."""
    found = float(value) if _is_real(value) else math.nan
    if not math.isfinite(found):
        _refuse(name, value, expected)
    return found


def duration(name: str, value: Any) -> timedelta:
    """More than no time: a `timedelta`, or seconds as a number."""
    expected = "seconds as a number above 0, or a timedelta"
    if isinstance(value, timedelta):
        found = value
    else:
        try:
            found = timedelta(seconds=number(name, value, expected))
        except OverflowError:
            _refuse(name, value, expected)
    if found <= timedelta(0):
        _refuse(name, value, expected)
    return found


def duration_or_zero(name: str, value: Any) -> timedelta:
    """As `duration`; 0 is taken as well."""
    zero = timedelta(0)
    is_zero = value == zero or (value == 0 and not isinstance(value, bool))
    return zero if is_zero else duration(name, value)


def fraction(name: str, value: Any) -> float:
    """A number above 0 and at most 1."""
    expected = "a fraction above 0 and at most 1"
    found = number(name, value, expected)
    if not 0 < found <= 1:
        _refuse(name, value, expected)
    return found


def gib(name: str, value: Any) -> float:
    """A number of GiB."""
    expected = "a number of GiB that is more than 0"
    found = number(name, value, expected)
    if found <= 0:
        _refuse(name, value, expected)
    return found


def text(name: str, value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        _refuse(name, value, "a text")
    return value


def path(name: str, value: Any) -> str:
    """A path, as text or as an object that stands for one."""
    try:
        found = os.fspath(value)
    except TypeError:
        found = None
    if not isinstance(found, str):
        _refuse(name, value, "a path")
    return found


def patterns(name: str, value: Any) -> list[str]:
    """A list of patterns."""
    whole = isinstance(value, list | tuple) and all(isinstance(one, str) and one for one in value)
    if not whole:
        _refuse(name, value, "a list of patterns such as ['**/*.json']")
    return list(value)


def options(name: str, value: Any) -> dict[str, Any]:
    """Keyword arguments."""
    try:
        found = dict(value)
    except (TypeError, ValueError):
        _refuse(name, value, "a dictionary of keyword arguments")
    if not all(isinstance(key, str) for key in found):
        _refuse(name, value, "a dictionary of keyword arguments")
    return found


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def fit_name(name: str, value: Any) -> str:
    """The name of a fit, which can be a folder."""
    return check_fit_name(text(name, value))
