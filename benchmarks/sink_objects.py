"""The objects of the sink, and what it does with their bytes."""

from __future__ import annotations

import itertools
import os
import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote
from xml.sax.saxutils import escape

import xxhash
from sink_wire import PIECE, Request

if TYPE_CHECKING:
    from collections.abc import Iterator

KEPT = "kept"
PAGE = 1000


@dataclass
class Part:
    size: int
    xxh3: str
    memory: int = -1
    """Descriptor of the bytes; -1 if they are gone."""

    @property
    def etag(self) -> str:
        return f'"{self.xxh3}"'


@dataclass
class Content:
    """An object: its parts in order."""

    parts: list[Part]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    @property
    def etag(self) -> str:
        joined = "".join(part.xxh3 for part in self.parts).encode()
        return f'"{xxhash.xxh3_128_hexdigest(joined)}-{len(self.parts)}"'

    def cut(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(descriptor, offset in it, bytes) of what holds the bytes from `begin` to `end`."""
        start = 0
        for part in self.parts:
            first, last = max(begin, start), min(end, start + part.size)
            if first < last:
                yield part.memory, first - start, last - first
            start += part.size

    def close(self) -> None:
        for part in self.parts:
            if part.memory >= 0:
                os.close(part.memory)


@dataclass
class Shared:
    """What all connections see; a lock guards every use of it."""

    latency: float
    cap: float
    objects: dict[str, Content] = field(default_factory=dict)
    uploads: dict[str, tuple[str, dict[int, Part]]] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    received: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def keep(self, path: str, content: Content) -> None:
        """Put an object in place of what was there."""
        with self.lock:
            before = self.objects.pop(path, None)
            self.objects[path] = content
        if before is not None:
            before.close()

    def drop(self, path: str) -> None:
        with self.lock:
            content = self.objects.pop(path, None)
        if content is not None:
            content.close()

    def under(self, bucket: str) -> dict[str, Content]:
        """Key -> object."""
        with self.lock:
            found = self.objects.items()
            return {p.partition("/")[2]: c for p, c in found if p.startswith(f"{bucket}/")}


def receive(request: Request, shared: Shared, bucket: str) -> Part:
    """The body as a part."""
    hasher, size = xxhash.xxh3_128(), 0
    memory = os.memfd_create("part") if bucket == KEPT else -1
    while piece := request.body.take(PIECE):
        hasher.update(piece)
        size += len(piece)
        if memory >= 0:
            write(memory, piece)
    with shared.lock:
        shared.received += size
    return Part(size, hasher.hexdigest(), memory)


def write(descriptor: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(descriptor, piece) :]


def copied(request: Request, shared: Shared, bucket: str) -> Part | None:
    """A part made of bytes that are here; None if they are not."""
    source = unquote(request.headers["x-amz-copy-source"]).lstrip("/").partition("?")[0]
    with shared.lock:
        found = shared.objects.get(source)
    if found is None or not source.startswith(f"{KEPT}/"):
        return None
    begin, end = 0, found.size
    wanted = request.headers.get("x-amz-copy-source-range", "")
    if match := re.fullmatch(r"bytes=(\d+)-(\d+)", wanted):
        begin, end = int(match[1]), int(match[2]) + 1
    memory = os.memfd_create("part") if bucket == KEPT else -1
    hasher = xxhash.xxh3_128()
    for descriptor, offset, size in found.cut(begin, end):
        for start in range(offset, offset + size, PIECE):
            piece = os.pread(descriptor, min(PIECE, offset + size - start), start)
            hasher.update(piece)
            if memory >= 0:
                write(memory, memoryview(piece))
    return Part(end - begin, hasher.hexdigest(), memory)


def listing(own: dict[str, Content], bucket: str, query: dict[str, str]) -> str:
    """One page of a bucket's keys, as XML."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    after = query.get("continuation-token", query.get("start-after", ""))
    folders: dict[str, None] = {}
    keys = []
    for key in sorted(key for key in own if key.startswith(prefix) and key > after):
        folder, found, _ = key[len(prefix) :].partition(delimiter or "\0")
        if found:
            folders[f"{prefix}{folder}{delimiter}"] = None
        else:
            keys.append(key)
    shown, more = keys[:PAGE], len(keys) > PAGE
    items = "".join(
        f"<Contents><Key>{escape(key)}</Key><Size>{own[key].size}</Size>"
        f"<ETag>{escape(own[key].etag)}</ETag>"
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        for key in shown
    )
    items += "".join(
        f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in folders
    )
    if more:
        items += f"<NextContinuationToken>{escape(shown[-1])}</NextContinuationToken>"
    return (
        f"<ListBucketResult><Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix>"
        f"<KeyCount>{len(shown) + len(folders)}</KeyCount><MaxKeys>{PAGE}</MaxKeys>"
        f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>{items}</ListBucketResult>"
    )
