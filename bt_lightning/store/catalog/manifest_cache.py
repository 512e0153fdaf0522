"""A cache of manifests on the local disk: a listing need not read them from the store again.

An object is identified by its key, size and version. The version changes whenever the bytes do: an
ETag, or for a folder the inode and times of the file, since each write makes a new file. Without a
version nothing is cached, and only whole manifests are. A file of the cache has summaries, which
are parsed at once, and behind them the manifests' bytes, which are parsed when files are asked for.
It is used only if

- it belongs to this user and nobody else can write it,
- its digest, over the store's prefix and all that is in the file, is right;

and a manifest's bytes only if they have the MD5 that the version is, where it is one, as mostly on
S3. Otherwise the store is asked. A file is replaced as a whole, so several processes may use it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import xxhash

from bt_lightning.manifest import Manifest
from bt_lightning.manifest_summary import listed_manifest
from bt_lightning.store.catalog.cache_folder import bound_folder, cache_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bt_lightning.store.interface import ObjectInfo

_MAGIC: Final = b"bt_lightning manifests 2\n"
_DIGEST_BYTES: Final = 16
_LENGTH_BYTES: Final = 8
_HEAD_BYTES: Final = len(_MAGIC) + _DIGEST_BYTES + _LENGTH_BYTES
_MOST_BYTES: Final = 64 * 1024 * 1024
"""Of the manifests in a file, and of the summaries in it."""
_MD5: Final = re.compile(r"[0-9a-f]{32}")


class _Known(NamedTuple):
    """What is cached of one object."""

    size: int
    version: str
    summary: dict[str, Any]
    data: bytes
    """The manifest; empty if there was no room for it."""


class ManifestCache:
    """The manifests of one prefix of one store. Used by one thread."""

    def __init__(self, folder: Path, prefix_url: str) -> None:
        """`folder` is the user's cache; `prefix_url` is store and prefix, without secrets."""
        self._prefix_url = prefix_url.encode(errors="surrogatepass")
        self._file = cache_file(folder, self._prefix_url)
        self._found = _parse(_own(self._file), self._prefix_url)
        self._used: dict[str, _Known] = {}
        self._new = False

    def get(self, info: ObjectInfo, read: Callable[[], Manifest]) -> Manifest | None:
        """The object's manifest; None if it is not cached, or not certain to be the same.

        `read` reads it from the store; it is called if files are asked for whose entries are not
        cached.
        """
        known = self._found.get(info.key)
        if known is None or (known.size, known.version) != (info.size, info.version):
            return None
        data = known.data
        if data and not _fits(info, data):
            return None
        try:
            manifest = listed_manifest(
                known.summary,
                partial(Manifest.from_bytes, data, info.key) if data else read,
                distant=not data,
            )
        except ValueError:
            return None
        self._used[info.key] = known
        return manifest

    def put(self, info: ObjectInfo, summary: dict[str, Any] | None, data: bytes = b"") -> None:
        """Cache what the store gave for `info`, which was listed before; the bytes, if read."""
        if summary is not None and info.version is not None and (not data or _fits(info, data)):
            self._used[info.key] = _Known(info.size, info.version, summary, data)
            self._new = True

    def save(self) -> None:
        """Write what was used or added to the disk, and drop all else; bound the whole cache.

        An error of the disk is ignored.
        """
        if not self._new and len(self._used) == len(self._found):
            return
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, draft = tempfile.mkstemp(dir=self._file.parent, prefix=".manifests-")
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.writelines(_content(self._used, self._prefix_url))
                Path(draft).replace(self._file)
            except BaseException:
                Path(draft).unlink(missing_ok=True)
                raise
            bound_folder(self._file)


def _fits(info: ObjectInfo, data: bytes) -> bool:
    """Whether `data` has the size, and the MD5 if there is one, that the listing gave."""
    if len(data) != info.size:
        return False
    if info.version is None or not _MD5.fullmatch(info.version):
        return True
    return hashlib.md5(data, usedforsecurity=False).hexdigest() == info.version


def _content(used: dict[str, _Known], prefix_url: bytes) -> list[bytes]:
    """The content of a cache file, in pieces. What there is no room for is left out."""
    texts: list[str] = []
    pieces: list[bytes] = []
    left, text_left = _MOST_BYTES, _MOST_BYTES
    for key, known in used.items():
        length = len(known.data) if len(known.data) < left else 0
        text = json.dumps([key, known.size, known.version, length, known.summary])
        if len(text) < text_left:
            text_left -= len(text)
            texts.append(text)
            if length:  # that of a thousand ranks leaves room for small ones
                left -= length
                pieces.append(known.data)
    index = f"[{','.join(texts)}]".encode("ascii")
    body = [len(index).to_bytes(_LENGTH_BYTES, "little"), index, *pieces]
    return [_MAGIC, _digest(prefix_url, body), *body]


def _digest(prefix_url: bytes, body: Sequence[bytes | memoryview]) -> bytes:
    hasher = xxhash.xxh3_128(len(prefix_url).to_bytes(_LENGTH_BYTES, "little"))
    for part in (prefix_url, *body):
        hasher.update(part)
    return hasher.digest()


def _parse(content: bytes, prefix_url: bytes) -> dict[str, _Known]:
    """Key -> what is cached of it; nothing if the file is damaged, or of another prefix."""
    whole = memoryview(content)
    body = whole[len(_MAGIC) + _DIGEST_BYTES :]
    if content[: len(_MAGIC)] != _MAGIC or (
        _digest(prefix_url, [body]) != whole[len(_MAGIC) : len(_MAGIC) + _DIGEST_BYTES]
    ):
        return {}
    at = _HEAD_BYTES + int.from_bytes(body[:_LENGTH_BYTES], "little")
    found: dict[str, _Known] = {}
    try:
        for key, size, version, length, summary in json.loads(content[_HEAD_BYTES:at]):
            found[key] = _Known(size, version, summary, content[at : at + length])
            at += length
    except (RecursionError, TypeError, ValueError):
        return {}  # of another version of this package
    return found


def _own(file: Path) -> bytes:
    """The content of `file`, if it is regular, this user's, and writable by nobody else."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
        if not ours or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return b""
        if status.st_size > 2 * _MOST_BYTES + _HEAD_BYTES:
            return b""
        with contextlib.suppress(OSError):
            return stream.read(status.st_size)
    return b""
