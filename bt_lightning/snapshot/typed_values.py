"""The typed values of the tree that need no tensor: each form's way there and back, side by side.

`sub` encodes or decodes a nested value; on the way there its second argument is the value's label
in the path that names tensors and errors.
"""

from __future__ import annotations

import base64
import sys
from argparse import Namespace
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Sub = Callable[[Any, str], Any]
    Back = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Form:
    """How values of one exact type look in the tree."""

    kind: str
    """Value of the key `$`."""
    there: Callable[[Any, Sub], dict[str, Any]]
    back: Callable[[dict[str, Any], Back], Any]


def _list(values: Iterable[Any], sub: Sub) -> list[Any]:
    return [sub(value, str(index)) for index, value in enumerate(values)]


def pairs(mapping: dict[Any, Any], sub: Sub) -> list[list[Any]]:
    """Items of a mapping with keys of any type, in order."""
    return [[sub(key, f"key {key!r}"), sub(value, str(key))] for key, value in mapping.items()]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _sequence(kind: str, make: Callable[[list[Any]], Any]) -> Form:
    return Form(
        kind,
        lambda value, sub: {"v": _list(value, sub)},
        lambda node, back: make([back(item) for item in node["v"]]),
    )


def _set(kind: str, make: Callable[[list[Any]], Any]) -> Form:
    """Sets have no order: theirs in the file is that of the text, so that equal sets look equal."""
    return Form(
        kind,
        lambda value, sub: {"v": sorted(_list(value, sub), key=repr)},
        lambda node, back: make([back(item) for item in node["v"]]),
    )


def _text(kind: str, make: Callable[[str], Any]) -> Form:
    return Form(kind, lambda value, _: {"v": str(value)}, lambda node, _: make(node["v"]))


def _numbers(kind: str, names: tuple[str, ...], make: Callable[..., Any]) -> Form:
    return Form(
        kind,
        lambda value, _: {"v": [getattr(value, name) for name in names]},
        lambda node, _: make(*[_whole(item) for item in node["v"]]),
    )


def _whole(value: Any) -> Any:
    if value is not None and type(value) is not int:
        msg = f"expected a whole number, found {value!r}"
        raise ValueError(msg)
    return value


def _attributes(kind: str, make: type) -> Form:
    def back(node: dict[str, Any], decode: Back) -> Any:
        value = make()
        vars(value).update({str(decode(key)): decode(item) for key, item in node["v"]})
        return value

    return Form(kind, lambda value, sub: {"v": pairs(vars(value), sub)}, back)


def _ordered_back(node: dict[str, Any], back: Back) -> OrderedDict[Any, Any]:
    value = OrderedDict((back(key), back(item)) for key, item in node["v"])
    for name, item in node.get("attrs", []):
        setattr(value, str(name), back(item))  # `_metadata` of a state_dict: versions of modules
    return value


def _ordered_there(value: OrderedDict[Any, Any], sub: Sub) -> dict[str, Any]:
    node: dict[str, Any] = {"v": pairs(value, sub)}
    if vars(value):
        node["attrs"] = [[name, sub(item, name)] for name, item in vars(value).items()]
    return node


def _counter_back(node: dict[str, Any], back: Back) -> Counter[Any]:
    value: Counter[Any] = Counter()
    value.update({back(key): back(item) for key, item in node["v"]})
    return value


_DATE = ("year", "month", "day")
_TIME = ("hour", "minute", "second", "microsecond")


def _moment(kind: str, names: tuple[str, ...], make: Callable[..., Any]) -> Form:
    return Form(
        kind,
        lambda value, sub: {
            "v": [getattr(value, name) for name in names],
            "fold": value.fold,
            "tz": sub(value.tzinfo, "tzinfo"),
        },
        lambda node, back: make(
            *[_whole(item) for item in node["v"]],
            fold=_whole(node["fold"]),
            tzinfo=back(node["tz"]),
        ),
    )


def _delta(value: timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _zone(offset: timedelta, name: str | None = None) -> dict[str, Any]:
    return {"v": _delta(offset), "name": name}


def _zone_back(node: dict[str, Any], _: Back) -> timezone:
    offset = timedelta(*[_whole(item) for item in node["v"]])
    if node["name"] is None:
        return timezone(offset) if offset else timezone.utc
    return timezone(offset, node["name"])


def _torch_name(kind: str, wanted: type) -> Form:
    def back(node: dict[str, Any], _: Back) -> Any:
        found = vars(torch).get(str(node["v"]).removeprefix("torch."))  # getattr may import
        if not isinstance(found, wanted):
            msg = f"this torch has no {kind} called {node['v']!r}"
            raise ValueError(msg)  # noqa: TRY004 - the file's content is wrong
        return found

    return Form(kind, lambda value, _: {"v": str(value)}, back)


def _path(kind: str, make: Callable[[str], Any]) -> Form:
    return Form(kind, lambda value, _: {"v": str(value)}, lambda node, _: make(str(node["v"])))


_WINDOWS = sys.platform == "win32"

FORMS: Final[dict[type, Form]] = {
    tuple: _sequence("tuple", tuple),
    set: _set("set", set),
    frozenset: _set("frozenset", frozenset),
    torch.Size: _sequence("torch.Size", torch.Size),
    deque: Form(
        "deque",
        lambda value, sub: {"v": _list(value, sub), "maxlen": value.maxlen},
        lambda node, back: deque([back(item) for item in node["v"]], _whole(node["maxlen"])),
    ),
    bytes: Form(
        "bytes",
        lambda value, _: {"v": _base64(value)},
        lambda node, _: base64.b64decode(node["v"], validate=True),
    ),
    bytearray: Form(
        "bytearray",
        lambda value, _: {"v": _base64(bytes(value))},
        lambda node, _: bytearray(base64.b64decode(node["v"], validate=True)),
    ),
    complex: Form(
        "complex",
        lambda value, sub: {"v": [sub(value.real, "real"), sub(value.imag, "imag")]},
        lambda node, back: complex(*[float(back(item)) for item in node["v"]]),
    ),
    OrderedDict: Form("ordereddict", _ordered_there, _ordered_back),
    Counter: Form("counter", lambda value, sub: {"v": pairs(value, sub)}, _counter_back),
    range: _numbers("range", ("start", "stop", "step"), range),
    slice: Form(
        "slice",
        lambda value, sub: {
            "v": [sub(value.start, "0"), sub(value.stop, "1"), sub(value.step, "2")]
        },
        lambda node, back: slice(*[back(item) for item in node["v"]]),
    ),
    Decimal: _text("decimal", Decimal),
    Fraction: Form(
        "fraction",
        lambda value, sub: {"v": [sub(value.numerator, "0"), sub(value.denominator, "1")]},
        lambda node, back: Fraction(*[_whole(back(item)) for item in node["v"]]),
    ),
    UUID: _text("uuid", UUID),
    PosixPath: _path("path", Path),
    WindowsPath: _path("windowspath", WindowsPath if _WINDOWS else PureWindowsPath),
    PurePosixPath: _path("purepath", PurePosixPath),
    PureWindowsPath: _path("purewindowspath", PureWindowsPath),
    date: _numbers("date", _DATE, date),
    time: _moment("time", _TIME, time),
    datetime: _moment("datetime", _DATE + _TIME, datetime),
    timedelta: _numbers("timedelta", ("days", "seconds", "microseconds"), timedelta),
    timezone: Form(
        "timezone",
        lambda value, _: _zone(*value.__getinitargs__()),
        _zone_back,
    ),
    ZoneInfo: Form(
        "zoneinfo", lambda value, _: {"v": value.key}, lambda node, _: ZoneInfo(node["v"])
    ),
    Namespace: _attributes("namespace", Namespace),
    SimpleNamespace: _attributes("simplenamespace", SimpleNamespace),
    torch.device: _text("torch.device", torch.device),
    torch.dtype: _torch_name("torch.dtype", torch.dtype),
    torch.layout: _torch_name("torch.layout", torch.layout),
    torch.memory_format: _torch_name("torch.memory_format", torch.memory_format),
}
BY_KIND: Final[dict[str, Form]] = {form.kind: form for form in FORMS.values()}
