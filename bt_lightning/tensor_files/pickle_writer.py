"""Writes pickles (protocol 2) of plain values and of objects whose classes are only named. Pure.

The module `pickle` writes an object only if its class can be imported; here nothing is imported.
The same values give the same bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.errors import UnsupportedStateError

if TYPE_CHECKING:
    from collections.abc import Iterable

_BYTE: Final = 1 << 8
_SHORT: Final = 1 << 16
_SIGNED: Final = 1 << 31


@dataclass(frozen=True, slots=True)
class Named:
    """A class or a function, by its module and its name."""

    module: str
    name: str


@dataclass(frozen=True, slots=True)
class Called:
    """What a call of `function` with `args` returns."""

    function: Named
    args: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Made:
    """An object made by `kind.__new__`, with a state: its attributes, or what it takes itself."""

    kind: Named
    state: Any = None


@dataclass(frozen=True, slots=True)
class Referred:
    """What the reader's `persistent_load` returns for `key`."""

    key: Any


@dataclass(frozen=True, slots=True)
class Pairs:
    """A dictionary, of keys of any kind; its pairs are asked for when they are written."""

    items: Iterable[tuple[Any, Any]]


def pickled(value: Any) -> bytes:
    """The pickle of a value: an object of this module, or a plain value.

    Plain are None, bool, int, float, str, and lists, tuples and dictionaries of such values.

    Raises:
        UnsupportedStateError: it is, or holds, something else.
    """
    writer = _Writer()
    writer.value(value)
    return b"\x80\x02" + bytes(writer.out) + b"."


class _Writer:
    def __init__(self) -> None:
        self.out = bytearray()
        self._memo: dict[Named | str, int] = {}

    def value(self, value: Any) -> None:
        if value is None or isinstance(value, bool):
            self.out += {None: b"N", True: b"\x88", False: b"\x89"}[value]
        elif isinstance(value, int):
            self._int(value)
        elif isinstance(value, float):
            self.out += b"G" + struct.pack(">d", value)
        elif isinstance(value, str):
            self._once(value, lambda: self._text(value))
        elif isinstance(value, tuple):
            self._tuple(value)
        elif isinstance(value, list):
            self.out += b"]("
            for item in value:
                self.value(item)
            self.out += b"e"
        elif isinstance(value, dict):
            self._pairs(value.items())
        else:
            self._object(value)

    def _object(self, value: Any) -> None:
        if isinstance(value, Pairs):
            self._pairs(value.items)
        elif isinstance(value, Named):
            self._once(value, lambda: self._global(value))
        elif isinstance(value, Called):
            self.value(value.function)
            self.value(value.args)
            self.out += b"R"
        elif isinstance(value, Made):
            self.value(value.kind)
            self.out += b")\x81"
            if value.state is not None:
                self.value(value.state)
                self.out += b"b"
        elif isinstance(value, Referred):
            self.value(value.key)
            self.out += b"Q"
        else:
            msg = f"a {type(value).__qualname__} is no plain value: it cannot be written"
            raise UnsupportedStateError(msg)

    def _once(self, value: Named | str, write: Any) -> None:
        """Write a value the first time, refer to it later."""
        known = self._memo.get(value)
        if known is not None:
            small = known < _BYTE
            self.out += b"h" + bytes([known]) if small else b"j" + struct.pack("<I", known)
            return
        write()
        number = self._memo[value] = len(self._memo)
        small = number < _BYTE
        self.out += b"q" + bytes([number]) if small else b"r" + struct.pack("<I", number)

    def _text(self, value: str) -> None:
        data = value.encode("utf-8", "surrogatepass")
        self.out += b"X" + struct.pack("<I", len(data)) + data

    def _global(self, value: Named) -> None:
        self.out += f"c{value.module}\n{value.name}\n".encode()

    def _int(self, value: int) -> None:
        if 0 <= value < _BYTE:
            self.out += b"K" + bytes([value])
        elif 0 <= value < _SHORT:
            self.out += b"M" + struct.pack("<H", value)
        elif -_SIGNED <= value < _SIGNED:
            self.out += b"J" + struct.pack("<i", value)
        else:
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            long = len(data) >= _BYTE
            self.out += (
                b"\x8b" + struct.pack("<i", len(data)) if long else b"\x8a" + bytes([len(data)])
            )
            self.out += data

    def _tuple(self, value: tuple[Any, ...]) -> None:
        if not value:
            self.out += b")"
            return
        self.out += b"("
        for item in value:
            self.value(item)
        self.out += b"t"

    def _pairs(self, items: Iterable[tuple[Any, Any]]) -> None:
        self.out += b"}("
        for key, value in items:
            self.value(key)
            self.value(value)
        self.out += b"u"
