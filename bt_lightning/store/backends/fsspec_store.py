"""Any fsspec filesystem as a store, by plain fsspec calls."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any

from bt_lightning.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    StoreTransientError,
)
from bt_lightning.store.bandwidth_limit import Bandwidth
from bt_lightning.store.interface import (
    AS_IT_GOES,
    ObjectInfo,
    most_bytes,
    redact,
    too_large,
    translated,
)
from bt_lightning.store.secrets import known_secrets
from bt_lightning.store.transfer.file_source import PIECE_BYTES, covers_all, pieces
from bt_lightning.store.transfer.parallel_reads import scatter

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from bt_lightning.store.interface import ReadProgress, Reuse, Sending, Source

S3_SCHEMES = frozenset({"s3", "s3a"})
_CONNECT_S = 10
_READ_S = 60


class FsspecStore:
    """A `Store` over an fsspec filesystem; called by several threads."""

    distant = True

    def __init__(
        self, url: str, storage_options: Mapping[str, object], sending: Sending = AS_IT_GOES
    ) -> None:
        self._secrets = known_secrets(url, storage_options, os.environ)
        self._name = redact(url, self._secrets).rstrip("/")
        import fsspec

        options: dict[str, Any] = {**default_options(url.partition("://")[0]), **storage_options}
        with translated(f"opening {self._name}", self._secrets):
            self._fs, root = fsspec.core.url_to_fs(url, **options)
        self._root = root.rstrip("/")
        self._bandwidth = Bandwidth(sending.bytes_s) if sending.bytes_s else None

    @property
    def name(self) -> str:
        """The URL without secrets."""
        return self._name

    @property
    def filesystem(self) -> Any:
        """The fsspec filesystem, for calls that only one kind of store has."""
        return self._fs

    def send(self, source: Source, key: str, reuse: Reuse | None = None) -> None:
        """Upload in one stream, or copy inside the store; an object appears when it is complete."""
        with self._doing("uploading", key):
            if (
                reuse is not None
                and covers_all(source, reuse.ranges)
                and self._copied(reuse.key, key)
            ):
                return
            if source.size <= PIECE_BYTES:
                with source.hold(0, source.size) as data:
                    self.throttle(source.size)
                    self._fs.pipe_file(self._path(key), bytes(data))
                return
            target = self._fs.open(self._path(key), "wb", block_size=PIECE_BYTES)
            try:
                for piece in pieces(source):
                    self.throttle(len(piece))
                    target.write(piece)
            except BaseException:
                _discard(target)
                raise
            target.close()

    def throttle(self, size: int) -> None:
        """Wait until the bandwidth limit allows `size` bytes: a whole piece, for these clients."""
        if self._bandwidth is not None:
            time.sleep(self._bandwidth.take_all(size, time.monotonic()))

    def _copied(self, there: str, key: str) -> bool:
        """Copy inside the store; False if it cannot copy, or if the other object is gone."""
        try:
            self._fs.cp_file(self._path(there), self._path(key))
        except (FileNotFoundError, NotImplementedError):
            return False
        return True

    def put(self, key: str, data: bytes) -> None:
        """Upload a small object in one request."""
        with self._doing("writing", key):
            self._fs.pipe_file(self._path(key), data)

    def put_new(self, key: str, data: bytes) -> None:
        """Upload with `If-None-Match: *` where the store supports it (fsspec's `mode="create"`)."""
        with self._doing("writing", key):
            try:
                self._fs.pipe_file(self._path(key), data, mode="create")
            except OSError as error:
                if not _says_exists(error):
                    raise
                if self.read(key) != data:  # equal: our own success whose answer was lost
                    msg = f"{self._name}/{key} exists and holds other bytes"
                    raise CheckpointExistsError(msg) from None

    def read(self, key: str) -> bytes | None:
        """Download a small object."""
        with self._doing("reading", key):
            most = most_bytes(key)
            try:
                data = bytes(self._fs.cat_file(self._path(key), end=most + 1))
            except (FileNotFoundError, IsADirectoryError):
                return None
            except Exception:
                if self.size(key) != 0:  # some servers refuse a range of an empty object
                    raise
                return b""
        if len(data) > most:
            raise too_large(self._name, key)
        return data

    def size(self, key: str) -> int | None:
        """Ask for the object's metadata."""
        with self._doing("reading", key):
            try:
                info = self._fs.info(self._path(key))
            except FileNotFoundError:
                return None
            if info["type"] == "directory":
                return None
            if info["size"] is None:  # a web server that sends no length
                return len(self._fs.cat_file(self._path(key)))
            return int(info["size"])

    def read_into(
        self,
        key: str,
        offset: int,
        *targets: memoryview,
        on_progress: ReadProgress = int,  # noqa: ARG002
    ) -> None:
        """Download that range."""
        size = sum(map(len, targets))
        with self._doing("downloading", key):
            try:
                data = self._fs.cat_file(self._path(key), start=offset, end=offset + size)
            except FileNotFoundError:
                msg = f"there is no {self._name}/{key}"
                raise CheckpointNotFoundError(msg) from None
            if len(data) > size:  # a web server without ranges sends the whole object
                data = data[offset : offset + size]
            if len(data) != size:
                msg = f"{self._name}/{key} gave {len(data)} of {size} bytes from {offset} on"
                raise StoreTransientError(msg)
            scatter(memoryview(data), targets)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object under the folder; caches of listings are bypassed."""
        with self._doing("listing", prefix):
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(f"{self._root}/{prefix}", detail=True)
            except FileNotFoundError:
                return
        for path, info in found.items():
            if info["type"] == "directory":
                continue  # some servers keep an empty folder, and list it
            etag = info.get("ETag")
            version = etag.strip('"') if isinstance(etag, str) else None
            yield ObjectInfo(path[len(self._root) :].lstrip("/"), int(info["size"] or 0), version)

    def details(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Key and fsspec's `info` of every object below the URL; "" for one at the URL itself."""
        with self._doing("listing", ""):
            self._fs.invalidate_cache()
            try:
                info = self._fs.info(self._root)
                found = (
                    {self._root: info}
                    if info["type"] == "file"
                    else self._fs.find(self._root, detail=True)
                )
            except FileNotFoundError:
                return
        for path, info in found.items():
            yield path[len(self._root) :].lstrip("/"), info

    def detail(self, key: str) -> dict[str, Any]:
        """The `info` of fsspec for one object, asked anew; empty if there is none."""
        with self._doing("reading", key):
            self._fs.invalidate_cache()
            try:
                return dict(self._fs.info(self._path(key)))
            except FileNotFoundError:
                return {}

    def delete(self, keys: Collection[str]) -> None:
        """Delete one by one: a missing object must not keep the others from being deleted."""
        for key in keys:
            with self._doing("deleting", key), contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._path(key))

    def abandon(self, prefix: str, keep: Collection[str]) -> None:
        """Do nothing: fsspec does not list unfinished uploads."""

    def sign(self, key: str, expires_s: int) -> str:
        """Presign by the filesystem; S3, Azure and Google sign without a request."""
        path = self._path(key)
        with self._doing("signing a URL for", key):
            try:
                return str(self._fs.sign(path, expiration=expires_s))
            except NotImplementedError:
                return str(self._fs.unstrip_protocol(path))

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def _doing(self, verb: str, key: str) -> contextlib.AbstractContextManager[None]:
        return translated(f"{verb} {self._name}/{key}", self._secrets)


def default_options(scheme: str) -> dict[str, Any]:
    """Options of fsspec that every store needs: no cached listings, no shared client, timeouts."""
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme in S3_SCHEMES:
        timeouts = {"connect_timeout": _CONNECT_S, "read_timeout": _READ_S}
        options["config_kwargs"] = {**timeouts, "retries": {"max_attempts": 1}}
    return options


def _discard(target: Any) -> None:
    """Abort a file that is being written: closing it would publish half an object."""
    with contextlib.suppress(Exception):  # the error that led here is raised
        target.discard()
    with contextlib.suppress(AttributeError):  # a file in memory is published by close() only
        target.closed = True


def _says_exists(error: OSError) -> bool:
    """Whether a conditional write was refused because the key is taken.

    s3fs raises `OSError(EINVAL, ...)` with the server's message. Ceph sends no message: then the
    code is in botocore's error, the cause. A concurrent conditional write is answered with 409.
    """
    response = getattr(error.__cause__, "response", None) or {}
    text = f"{error} {response.get('Error', {}).get('Code')}"
    return isinstance(error, FileExistsError) or any(
        word in text for word in ("PreconditionFailed", "pre-conditions", "ConditionalRequest")
    )
