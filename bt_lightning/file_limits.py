"""Size limits of small files, and JSON that is parsed within them (docs/format.md, "Limits").

Anybody who can write to a directory or a store can put anything under the names of our files. A
text of 32 MiB can become 900 MB of empty dictionaries, so memory is estimated before parsing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from bt_lightning.errors import CheckpointCorruptError

MAX_DEPTH: Final = 100
"""Nested lists and objects."""
_MIB: Final = 1024 * 1024
_OBJECT_BYTES: Final = 240
_LIST_BYTES: Final = 90
_VALUE_BYTES: Final = 80
_MAX_CHAR_BYTES: Final = 4
"""Bytes of each character in a Python string that has one beyond U+FFFF."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of one kind of small file."""

    size: int
    """Bytes."""
    memory: int
    """Bytes of its parsed values: 240 an object, 90 a list, 80 for each comma or colon, and one for
    each byte of the text, or four unless all are ASCII."""

    def check_size(self, size: int) -> None:
        """Raise `CheckpointCorruptError` if a file of `size` bytes is too large to be read."""
        if size > self.size:
            msg = f"it has {size:,} bytes, expected at most {self.size:,}"
            raise CheckpointCorruptError(msg)

    def check(self, data: bytes) -> None:
        """Raise `CheckpointCorruptError` if the JSON text `data` is too large to be parsed."""
        self.check_size(len(data))
        memory = (
            len(data) * (1 if data.isascii() else _MAX_CHAR_BYTES)
            + data.count(b"{") * _OBJECT_BYTES
            + data.count(b"[") * _LIST_BYTES
            + (data.count(b",") + data.count(b":")) * _VALUE_BYTES
        )
        if memory > self.memory:
            msg = f"its values would take some {memory:,} bytes, expected at most {self.memory:,}"
            raise CheckpointCorruptError(msg)


MANIFEST: Final = Bounds(64 * _MIB, 128 * _MIB)
"""Limits of a manifest. Some 4 TB of files have the largest; 12 TB if they are sharded."""
BASE: Final = Bounds(32 * _MIB, 256 * _MIB)
"""Limits of `base.json`: some 200,000 tensors."""
SHARDS: Final = Bounds(64 * _MIB, 512 * _MIB)
"""Limits of `shards.json`: some 500,000 tensors."""
PART: Final = Bounds(32 * _MIB, 128 * _MIB)
"""Limits of a part record: it has the entries of one rank's files, as a manifest has."""
RECORD: Final = Bounds(_MIB, 32 * _MIB)
"""Limits of every other small file: records, leases, requests, journals, protections."""
LINE: Final = Bounds(_MIB // 4, 2 * _MIB)
"""Limits of one line of a file of lines."""
LINES_BYTES: Final = 16 * _MIB
"""Size of a file of lines: some 20,000 saves in the events, or 100,000 uploaded files."""


def parse_json(data: bytes, bounds: Bounds) -> Any:
    """Parse the JSON text `data`, within `bounds` and at most `MAX_DEPTH` deep.

    Raises:
        CheckpointCorruptError: it is too large, or no JSON; a `ValueError`. The message begins with
            "it", so the caller names the file.
    """
    bounds.check(data)
    try:
        value = json.loads(data)
    except RecursionError as error:
        msg = f"it is nested more than {MAX_DEPTH} deep"
        raise CheckpointCorruptError(msg) from error
    except ValueError as error:
        msg = f"it is no JSON ({error})"
        raise CheckpointCorruptError(msg) from error
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        _check_depth(value)
    return value


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[object] = []
        for one in level:
            if isinstance(one, dict):
                inner += one.values()
            elif isinstance(one, list):
                inner += one
        level = [one for one in inner if isinstance(one, dict | list)]
        if not level:
            return
    msg = f"it is nested more than {MAX_DEPTH} deep"
    raise CheckpointCorruptError(msg)
