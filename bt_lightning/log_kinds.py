"""The logs of a job: events, metrics and output; their files on the disk, their objects in a store.

Pure. A log's file on the disk is cut into segments, each an object of the store. The names of the
objects follow from the file's first line alone, so any process of the directory finds what an
earlier one sent, without a record of it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final, NamedTuple

import xxhash

from bt_lightning.path_layout import DOT_DIR, under

SEGMENT_BYTES: Final = 256 * 1024
"""A segment has the lines of a file that begin within so many bytes."""
_MIB: Final = 1024 * 1024
_NAME: Final = re.compile(r"([0-9]{13})-([0-9a-f]{8})-([0-9]{5})\.jsonl", re.ASCII)
_LATEST_MS: Final = 10**13 - 1


@dataclass(frozen=True, slots=True)
class LogKind:
    """One log: lines of JSON, each with `event` (a word) and `at` (seconds of the epoch)."""

    name: str
    most_bytes: int
    """At this size the file on the disk is renamed, in place of the one before it."""
    stored_bytes: int
    """What a store keeps of a node's log, in bytes: beyond it the oldest but the first go."""

    @property
    def file(self) -> str:
        """File name in the dot folder of the checkpoint directory."""
        return f"{self.name}.jsonl"

    @property
    def older(self) -> str:
        """Name of that file once it is full."""
        return f"{self.name}.1.jsonl"


EVENTS: Final = LogKind("events", 4 * _MIB, 16 * _MIB)
"""What happened to runs and saves. On the disk, about 5,000 saves in each of two files."""
METRICS: Final = LogKind("metrics", 8 * _MIB, 32 * _MIB)
"""A row of metrics of each logged step."""
OUTPUT: Final = LogKind("output", 8 * _MIB, 64 * _MIB)
"""What the commands of a job printed, line by line."""
LOGS: Final = (EVENTS, METRICS, OUTPUT)


class Segment(NamedTuple):
    """The name of one object of a log; in the order in which they were written."""

    began_ms: int
    """Milliseconds of the epoch: the time of the file's first line."""
    digest: str
    """Of the first line, so that two files of one millisecond differ."""
    number: int

    @property
    def name(self) -> str:
        """The last part of the object's key."""
        return f"{self.began_ms:013}-{self.digest}-{self.number:05}.jsonl"

    @property
    def of_file(self) -> tuple[int, str]:
        """What the segments of one file have in common."""
        return self.began_ms, self.digest


def segment_of_name(name: str) -> Segment | None:
    """The segment that an object's name stands for; None for other names."""
    found = _NAME.fullmatch(name)
    return None if found is None else Segment(int(found[1]), found[2], int(found[3]))


def first_segment(line: bytes) -> Segment:
    """The first segment of the file whose first line this is, with its line feed or without."""
    line = line.rstrip(b"\n")
    try:
        at = json.loads(line)["at"]
        began_ms = min(max(int(1000 * at), 0), _LATEST_MS)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        began_ms = 0  # a torn line, or another program's
    return Segment(began_ms, xxhash.xxh32_hexdigest(line), 0)


def log_folder(prefix: str, kind: LogKind) -> str:
    """Folder in a store of one log of the job and node at `prefix`."""
    return under(prefix, f"{DOT_DIR}-logs/{kind.name}")
