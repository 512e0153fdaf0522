"""Encodes and decodes typed values of the tree that have no tensors, one `Form` for each type.

The functions get `encode` or `decode` for nested values; the second argument of `encode` is the
nested value's label in the path that names tensors and errors.
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

    EncodeNested = Callable[[Any, str], Any]
    DecodeNested = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Form:
    """The encoding of values of one exact type."""

    kind: str
    """Value of the key `$` in the tree."""
    encode: Callable[[Any, EncodeNested], dict[str, Any]]
    decode: Callable[[dict[str, Any], DecodeNested], Any]


def _list(values: Iterable[Any], encode: EncodeNested) -> list[Any]:
    return [encode(value, str(index)) for index, value in enumerate(values)]


def pairs(mapping: dict[Any, Any], encode: EncodeNested) -> list[list[Any]]:
    """The items of a mapping with keys of any type, in order."""
    return [
        [encode(key, f"key {key!r}"), encode(value, str(key))] for key, value in mapping.items()
    ]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _sequence(kind: str, make: Callable[[list[Any]], Any]) -> Form:
    return Form(
        kind,
        lambda value, encode: {"v": _list(value, encode)},
        lambda node, decode: make([decode(item) for item in node["v"]]),
    )


def _set(kind: str, make: Callable[[list[Any]], Any]) -> Form:
    """Sets are written sorted by text, so that equal sets have equal bytes."""
    return Form(
        kind,
        lambda value, encode: {"v": sorted(_list(value, encode), key=repr)},
        lambda node, decode: make([decode(item) for item in node["v"]]),
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
    def decode_attributes(node: dict[str, Any], decode: DecodeNested) -> Any:
        value = make()
        vars(value).update({str(decode(key)): decode(item) for key, item in node["v"]})
        return value

    return Form(kind, lambda value, encode: {"v": pairs(vars(value), encode)}, decode_attributes)


def _decode_ordered(node: dict[str, Any], decode: DecodeNested) -> OrderedDict[Any, Any]:
    value = OrderedDict((decode(key), decode(item)) for key, item in node["v"])
    for name, item in node.get("attrs", []):
        setattr(value, str(name), decode(item))  # `_metadata` of a state_dict: versions of modules
    return value


def _encode_ordered(value: OrderedDict[Any, Any], encode: EncodeNested) -> dict[str, Any]:
    node: dict[str, Any] = {"v": pairs(value, encode)}
    if vars(value):
        node["attrs"] = [[name, encode(item, name)] for name, item in vars(value).items()]
    return node


def _decode_counter(node: dict[str, Any], decode: DecodeNested) -> Counter[Any]:
    value: Counter[Any] = Counter()
    value.update({decode(key): decode(item) for key, item in node["v"]})
    return value


_DATE = ("year", "month", "day")
_TIME = ("hour", "minute", "second", "microsecond")


def _moment(kind: str, names: tuple[str, ...], make: Callable[..., Any]) -> Form:
    return Form(
        kind,
        lambda value, encode: {
            "v": [getattr(value, name) for name in names],
            "fold": value.fold,
            "tz": encode(value.tzinfo, "tzinfo"),
        },
        lambda node, decode: make(
            *[_whole(item) for item in node["v"]],
            fold=_whole(node["fold"]),
            tzinfo=decode(node["tz"]),
        ),
    )


def _delta(value: timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _encode_zone(offset: timedelta, name: str | None = None) -> dict[str, Any]:
    return {"v": _delta(offset), "name": name}


def _decode_zone(node: dict[str, Any], _: DecodeNested) -> timezone:
    offset = timedelta(*[_whole(item) for item in node["v"]])
    if node["name"] is None:
        return timezone(offset) if offset else timezone.utc
    return timezone(offset, node["name"])


def _torch_name(kind: str, wanted: type) -> Form:
    def look_up(node: dict[str, Any], _: DecodeNested) -> Any:
        found = vars(torch).get(str(node["v"]).removeprefix("torch."))  # getattr may import
        if not isinstance(found, wanted):
            msg = f"this torch has no {kind} called {node['v']!r}"
            raise ValueError(msg)  # noqa: TRY004 - the file's content is wrong
        return found

    return Form(kind, lambda value, _: {"v": str(value)}, look_up)


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
        lambda value, encode: {"v": _list(value, encode), "maxlen": value.maxlen},
        lambda node, decode: deque([decode(item) for item in node["v"]], _whole(node["maxlen"])),
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
        lambda value, encode: {"v": [encode(value.real, "real"), encode(value.imag, "imag")]},
        lambda node, decode: complex(*[float(decode(item)) for item in node["v"]]),
    ),
    OrderedDict: Form("ordereddict", _encode_ordered, _decode_ordered),
    Counter: Form("counter", lambda value, encode: {"v": pairs(value, encode)}, _decode_counter),
    range: _numbers("range", ("start", "stop", "step"), range),
    slice: Form(
        "slice",
        lambda value, encode: {
            "v": [encode(value.start, "0"), encode(value.stop, "1"), encode(value.step, "2")]
        },
        lambda node, decode: slice(*[decode(item) for item in node["v"]]),
    ),
    Decimal: _text("decimal", Decimal),
    Fraction: Form(
        "fraction",
        lambda value, encode: {"v": [encode(value.numerator, "0"), encode(value.denominator, "1")]},
        lambda node, decode: Fraction(*[_whole(decode(item)) for item in node["v"]]),
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
        lambda value, _: _encode_zone(*value.__getinitargs__()),
        _decode_zone,
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
