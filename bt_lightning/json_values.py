"""Values in JSON of ours: how they are written, and checks of what was read."""

from __future__ import annotations

import json
import math
from typing import Any

from bt_lightning.iso_time import moment


def canonical(payload: dict[str, Any]) -> bytes:
    """The one text of an object of which digests are made: ASCII, keys sorted, no spaces."""
    return json.dumps(payload, sort_keys=True, separators=(",", ":")).encode("ascii")


def finite_or_text(value: float) -> float | str:
    """A number for JSON, which has no nan or inf: those as text, which `float` reads."""
    value = float(value)
    return value if math.isfinite(value) else str(value)


def time_text(value: Any) -> str:
    """Return `value` if it is a time, as `moment` reads it.

    Raises:
        TypeError, ValueError: it is none.
    """
    text: str = typed(str, value)
    moment(text)
    return text


def count_of(value: object, least: int = 0) -> int:
    """Return `value` if it is a whole number of at least `least`.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        msg = f"expected a whole number of at least {least}, found {value!r}"
        raise ValueError(msg)
    return value


def typed(kind: type, value: Any) -> Any:
    """Return `value` if it is of this type.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, kind):
        msg = f"expected {kind.__name__}, found {value!r}"
        raise TypeError(msg)
    return value
