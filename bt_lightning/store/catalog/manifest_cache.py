"""Manifests that were read from a store once, kept on this disk: a convenience, never a source.

An object is told by its key, its size, and its version: what the store says to change whenever the
bytes do (an ETag; for a folder the inode and times of the file, since each write makes a new file).
Without a version nothing is kept, and nothing that is no whole manifest. What the cache's file
holds is believed only if the file is this user's and nobody else can write it, if the record's
digest, made of the place, the key, the size, the version and the bytes, is right, and, where the
version is an MD5, as S3's mostly is, if the bytes have that MD5. On any doubt the store is asked.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import xxhash

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_limits import LINE, parse_json
from bt_lightning.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bt_lightning.store.interface import ObjectInfo

_MAGIC: Final = b"bt_lightning manifests 1\n"
_DIGEST_BYTES: Final = 16
_LENGTH_BYTES: Final = 4
_MOST_BYTES: Final = 64 * 1024 * 1024
_SPARE_BYTES: Final = 16 * 1024 * 1024
"""For what stands between the manifests."""
_MD5: Final = re.compile(r"[0-9a-f]{32}")


class ManifestCache:
    """The manifests of one place in one store. Not shared between threads."""

    def __init__(self, folder: Path, place: str) -> None:
        """`folder` is the user's own; `place` names the store and the prefix, without secrets."""
        self._place = place.encode(errors="surrogatepass")
        name = hashlib.blake2b(self._place, digest_size=16).hexdigest()
        self._file = folder / f"manifests-{name}"
        self._found = _parse(self._file, self._place)
        self._used: dict[str, tuple[str, bytes]] = {}
        self._new = False

    def get(self, info: ObjectInfo) -> bytes | None:
        """The object's bytes, if they are known without a doubt."""
        meta = _meta(info)
        data = self._found.get(info.key, ("", b""))
        if meta is None or data[0] != meta or not _fits(info, data[1]):
            return None
        self._used[info.key] = data
        return data[1]

    def put(self, info: ObjectInfo, data: bytes) -> None:
        """Remember what the store gave for `info`, which was listed before it was read."""
        meta = _meta(info)
        if meta is not None and _fits(info, data) and _is_manifest(data):
            self._used[info.key] = (meta, data)
            self._new = True

    def save(self) -> None:
        """Keep what was used since, and nothing else; a disk that refuses is no failure."""
        if not self._new and len(self._used) == len(self._found):
            return
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, draft = tempfile.mkstemp(dir=self._file.parent, prefix=".manifests-")
            try:
                with os.fdopen(handle, "wb") as stream:
                    left = _MOST_BYTES
                    stream.write(_MAGIC)
                    for meta, data in self._used.values():
                        left -= len(data)
                        if left > 0:
                            stream.write(_record(self._place, meta.encode(), data))
                Path(draft).replace(self._file)
            except BaseException:
                Path(draft).unlink(missing_ok=True)
                raise


def _meta(info: ObjectInfo) -> str | None:
    if info.version is None:
        return None
    return json.dumps([info.key, info.size, info.version])


def _fits(info: ObjectInfo, data: bytes) -> bool:
    """Whether `data` can be the object's bytes, as far as the listing tells."""
    if len(data) != info.size:
        return False
    if info.version is None or not _MD5.fullmatch(info.version):
        return True
    return hashlib.md5(data, usedforsecurity=False).hexdigest() == info.version


def _is_manifest(data: bytes) -> bool:
    """Whether it is whole: what was damaged on its way here must not be kept."""
    try:
        Manifest.from_bytes(data, "")
    except CheckpointCorruptError:
        return False
    return True


def _record(place: bytes, meta: bytes, data: bytes) -> bytes:
    lengths = len(meta).to_bytes(_LENGTH_BYTES, "little") + len(data).to_bytes(
        _LENGTH_BYTES, "little"
    )
    return b"".join((_digest(place, meta, data), lengths, meta, data))


def _digest(place: bytes, meta: bytes, data: bytes) -> bytes:
    hasher = xxhash.xxh3_128(len(place).to_bytes(8, "little"))
    for part in (place, len(meta).to_bytes(8, "little"), meta, data):
        hasher.update(part)
    return hasher.digest()


def _parse(file: Path, place: bytes) -> dict[str, tuple[str, bytes]]:
    """Key -> (meta, bytes) of each whole record, up to the first that is not."""
    content = _own(file)
    found: dict[str, tuple[str, bytes]] = {}
    at = len(_MAGIC)
    if content[:at] != _MAGIC:
        return found
    while at < len(content):
        digest = content[at : at + _DIGEST_BYTES]
        at += _DIGEST_BYTES
        sizes = [
            int.from_bytes(content[at + skip : at + skip + _LENGTH_BYTES], "little")
            for skip in (0, _LENGTH_BYTES)
        ]
        at += 2 * _LENGTH_BYTES
        meta, data = content[at : at + sizes[0]], content[at + sizes[0] : at + sum(sizes)]
        at += sum(sizes)
        if _digest(place, meta, data) != digest:
            break
        try:
            key = parse_json(meta, LINE)[0]
            found[str(key)] = (meta.decode(), data)
        except (ValueError, LookupError, TypeError):
            break
    return found


def _own(file: Path) -> bytes:
    """The content of a regular file that is this user's and that nobody else can write."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
        if not ours or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return b""
        if status.st_size > _MOST_BYTES + _SPARE_BYTES:
            return b""
        with contextlib.suppress(OSError):
            return stream.read(status.st_size)
    return b""


def user_cache(environ: Mapping[str, str]) -> Path | None:
    """Where this user's caches go (XDG Base Directory); None if nobody knows."""
    base = environ.get("XDG_CACHE_HOME", "")
    if not base.startswith("/"):  # a relative one is to be ignored, says the specification
        home = environ.get("HOME", "")
        if not home.startswith("/"):
            return None
        base = f"{home}/.cache"
    return Path(base) / "bt_lightning"
