"""A cache of manifests on the local disk: a listing need not read them from the store again.

An object is identified by its key, size and version. The version changes whenever the bytes do: an
ETag, or for a folder the inode and times of the file, since each write makes a new file. Without a
version nothing is cached, and only whole manifests are. A record of the cache is used only if

- its file belongs to this user and nobody else can write it,
- its digest, over store prefix, key, size, version and bytes, is right,
- the bytes have the MD5 that the version is, where it is one, as mostly on S3.

Otherwise the store is asked.
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
"""For the digests, lengths and keys beside the manifests."""
_MD5: Final = re.compile(r"[0-9a-f]{32}")


class ManifestCache:
    """The manifests of one prefix of one store. Used by one thread."""

    def __init__(self, folder: Path, prefix_url: str) -> None:
        """`folder` is the user's cache; `prefix_url` is store and prefix, without secrets."""
        self._prefix_url = prefix_url.encode(errors="surrogatepass")
        name = hashlib.blake2b(self._prefix_url, digest_size=16).hexdigest()
        self._file = folder / f"manifests-{name}"
        self._found = _parse(self._file, self._prefix_url)
        self._used: dict[str, tuple[str, bytes]] = {}
        self._new = False

    def get(self, info: ObjectInfo) -> bytes | None:
        """The object's bytes; None if they are not cached, or not certain to be the same."""
        meta = _meta(info)
        data = self._found.get(info.key, ("", b""))
        if meta is None or data[0] != meta or not _fits(info, data[1]):
            return None
        self._used[info.key] = data
        return data[1]

    def put(self, info: ObjectInfo, data: bytes) -> None:
        """Cache the bytes that the store gave for `info`, which was listed before the read."""
        meta = _meta(info)
        if meta is not None and _fits(info, data) and _is_manifest(data):
            self._used[info.key] = (meta, data)
            self._new = True

    def save(self) -> None:
        """Write the records that were used or added to the disk, and drop all others.

        An error of the disk is ignored.
        """
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
                        if len(data) < left:  # one of a thousand ranks leaves room for small ones
                            left -= len(data)
                            stream.write(_record(self._prefix_url, meta.encode(), data))
                Path(draft).replace(self._file)
            except BaseException:
                Path(draft).unlink(missing_ok=True)
                raise


def _meta(info: ObjectInfo) -> str | None:
    if info.version is None:
        return None
    return json.dumps([info.key, info.size, info.version])


def _fits(info: ObjectInfo, data: bytes) -> bool:
    """Whether `data` has the size, and the MD5 if there is one, that the listing gave."""
    if len(data) != info.size:
        return False
    if info.version is None or not _MD5.fullmatch(info.version):
        return True
    return hashlib.md5(data, usedforsecurity=False).hexdigest() == info.version


def _is_manifest(data: bytes) -> bool:
    """Whether `data` is a whole manifest: bytes damaged in transit must not be cached."""
    try:
        Manifest.from_bytes(data, "")
    except CheckpointCorruptError:
        return False
    return True


def _record(prefix_url: bytes, meta: bytes, data: bytes) -> bytes:
    lengths = len(meta).to_bytes(_LENGTH_BYTES, "little") + len(data).to_bytes(
        _LENGTH_BYTES, "little"
    )
    return b"".join((_digest(prefix_url, meta, data), lengths, meta, data))


def _digest(prefix_url: bytes, meta: bytes, data: bytes) -> bytes:
    hasher = xxhash.xxh3_128(len(prefix_url).to_bytes(8, "little"))
    for part in (prefix_url, len(meta).to_bytes(8, "little"), meta, data):
        hasher.update(part)
    return hasher.digest()


def _parse(file: Path, prefix_url: bytes) -> dict[str, tuple[str, bytes]]:
    """Key -> (meta, bytes) of each record of the cache file, up to the first damaged one."""
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
        if _digest(prefix_url, meta, data) != digest:
            break
        try:
            key = parse_json(meta, LINE)[0]
            found[str(key)] = (meta.decode(), data)
        except (ValueError, LookupError, TypeError):
            break
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
        if status.st_size > _MOST_BYTES + _SPARE_BYTES:
            return b""
        with contextlib.suppress(OSError):
            return stream.read(status.st_size)
    return b""


def user_cache(environ: Mapping[str, str]) -> Path | None:
    """This user's cache directory for this package (XDG Base Directory); None if unknown."""
    base = environ.get("XDG_CACHE_HOME", "")
    if not base.startswith("/"):  # a relative one is to be ignored, says the specification
        home = environ.get("HOME", "")
        if not home.startswith("/"):
            return None
        base = f"{home}/.cache"
    return Path(base) / "bt_lightning"
