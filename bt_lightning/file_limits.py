"""How large a small file may be, and JSON that is parsed within bounds (docs/format.md, "Limits").

Whoever may write to a directory or a store may put anything under the names of our files. A text
of 32 MiB can become 900 MB of empty dictionaries: what it will take is counted before it is parsed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from bt_lightning.errors import CheckpointCorruptError

DEEPEST: Final = 100
"""Lists and objects in each other."""
_MIB: Final = 1024 * 1024
_OBJECT_BYTES: Final = 240
_LIST_BYTES: Final = 90
_VALUE_BYTES: Final = 80
_WIDEST: Final = 4
"""Bytes a character in a Python string, as soon as one of them is beyond U+FFFF."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one kind of small file may hold."""

    size: int
    """Bytes."""
    memory: int
    """Bytes that its values may take: 240 an object, 90 a list, 80 for what a comma or colon parts,
    and one for each byte of the text, or four unless all are ASCII."""

    def check_size(self, size: int) -> None:
        """Raise `CheckpointCorruptError` if a file of `size` bytes is too large to be read."""
        if size > self.size:
            msg = f"it has {size:,} bytes, expected at most {self.size:,}"
            raise CheckpointCorruptError(msg)

    def check(self, data: bytes) -> None:
        """Raise `CheckpointCorruptError` if the JSON text `data` is too large to be parsed."""
        self.check_size(len(data))
        memory = (
            len(data) * (1 if data.isascii() else _WIDEST)
            + data.count(b"{") * _OBJECT_BYTES
            + data.count(b"[") * _LIST_BYTES
            + (data.count(b",") + data.count(b":")) * _VALUE_BYTES
        )
        if memory > self.memory:
            msg = f"its values would take some {memory:,} bytes, expected at most {self.memory:,}"
            raise CheckpointCorruptError(msg)


MANIFEST: Final = Bounds(32 * _MIB, 128 * _MIB)
"""Of a manifest. Some 3 TB of files have one of 32 MiB."""
RECORD: Final = Bounds(_MIB, 32 * _MIB)
"""Of every other small file: records, leases, requests, marks, journals, protections, notes."""
LINE: Final = Bounds(_MIB // 4, 2 * _MIB)
"""Of one line of a file of lines."""
LINES_BYTES: Final = 16 * _MIB
"""Of a file of lines: some 20,000 saves in the events, or 100,000 files that were sent."""


def parse_json(data: bytes, bounds: Bounds) -> Any:
    """The value of the JSON text `data`, if it is within `bounds` and at most `DEEPEST` deep.

    Raises:
        CheckpointCorruptError: it is too large, or no JSON; a `ValueError`. The message says what
            "it" is like, for the caller to name it.
    """
    bounds.check(data)
    try:
        value = json.loads(data)
    except RecursionError as error:
        msg = f"it is nested more than {DEEPEST} deep"
        raise CheckpointCorruptError(msg) from error
    except ValueError as error:
        msg = f"it is no JSON ({error})"
        raise CheckpointCorruptError(msg) from error
    if data.count(b"[") + data.count(b"{") > DEEPEST:
        _check_depth(value)
    return value


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(DEEPEST):
        inner: list[object] = []
        for one in level:
            if isinstance(one, dict):
                inner += one.values()
            elif isinstance(one, list):
                inner += one
        level = [one for one in inner if isinstance(one, dict | list)]
        if not level:
            return
    msg = f"it is nested more than {DEEPEST} deep"
    raise CheckpointCorruptError(msg)
