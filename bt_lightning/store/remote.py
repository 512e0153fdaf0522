"""Any fsspec filesystem as a store, by plain fsspec calls; and how a URL becomes a store."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bt_lightning.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    InvalidSettingError,
    StoreTransientError,
)
from bt_lightning.layout import plain_folder
from bt_lightning.store import azure, gcs
from bt_lightning.store.bandwidth import Bandwidth
from bt_lightning.store.local import LocalStore
from bt_lightning.store.parallel import scatter
from bt_lightning.store.port import (
    AS_IT_GOES,
    ObjectInfo,
    Store,
    most_bytes,
    redact,
    too_large,
    translated,
)
from bt_lightning.store.secrets import known_secrets
from bt_lightning.store.sources import PIECE_BYTES, pieces, whole

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from bt_lightning.store.port import Arrived, Reuse, Sending, Source

_S3 = frozenset({"s3", "s3a"})
_NATIVE = {
    **dict.fromkeys(azure.SCHEMES, azure.native),
    **dict.fromkeys(gcs.SCHEMES, gcs.native),
}
_CONNECT_S = 10
_READ_S = 60


class FsspecStore:
    """A `Store` over an fsspec filesystem."""

    distant = True

    def __init__(
        self, url: str, storage_options: Mapping[str, object], sending: Sending = AS_IT_GOES
    ) -> None:
        self._secrets = known_secrets(url, storage_options, os.environ)
        self._name = redact(url, self._secrets).rstrip("/")
        import fsspec

        options: dict[str, Any] = {**_defaults(url.partition("://")[0]), **storage_options}
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
        """The filesystem of fsspec, for what only one kind of store can be asked."""
        return self._fs

    def send(self, source: Source, key: str, reuse: Reuse | None = None) -> None:
        """Upload in one stream, or copy in the store; S3 shows an object when it is complete."""
        with self._doing("uploading", key):
            if reuse is not None and whole(source, reuse.ranges) and self._copied(reuse.key, key):
                return
            if source.size <= PIECE_BYTES:
                with source.hold(0, source.size) as data:
                    self.proceed(source.size)
                    self._fs.pipe_file(self._path(key), bytes(data))
                return
            target = self._fs.open(self._path(key), "wb", block_size=PIECE_BYTES)
            try:
                for piece in pieces(source):
                    self.proceed(len(piece))
                    target.write(piece)
            except BaseException:
                _discard(target)
                raise
            target.close()

    def proceed(self, size: int) -> None:
        """Wait until the user's limit lets bytes be sent: with these clients, whole pieces."""
        if self._bandwidth is not None:
            time.sleep(self._bandwidth.take_all(size, time.monotonic()))

    def _copied(self, there: str, key: str) -> bool:
        """Copy inside the store; False if it has no such call, or the other object is gone."""
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
        """Upload with `If-None-Match: *` where the store knows it (`mode="create"` of fsspec)."""
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
                if self.size(key) != 0:  # of nothing, some servers have no first bytes either
                    raise
                return b""
        if len(data) > most:
            raise too_large(self._name, key)
        return data

    def size(self, key: str) -> int | None:
        """Ask for the object's facts."""
        with self._doing("reading", key):
            try:
                info = self._fs.info(self._path(key))
            except FileNotFoundError:
                return None
            if info["type"] == "directory":
                return None
            if info["size"] is None:  # a web server that does not tell
                return len(self._fs.cat_file(self._path(key)))
            return int(info["size"])

    def read_into(
        self,
        key: str,
        offset: int,
        *targets: memoryview,
        arrived: Arrived = int,  # noqa: ARG002
    ) -> None:
        """Download that range."""
        size = sum(map(len, targets))
        with self._doing("downloading", key):
            try:
                data = self._fs.cat_file(self._path(key), start=offset, end=offset + size)
            except FileNotFoundError:
                msg = f"there is no {self._name}/{key}"
                raise CheckpointNotFoundError(msg) from None
            if len(data) > size:  # a web server that knows no ranges sends all
                data = data[offset : offset + size]
            if len(data) != size:
                msg = f"{self._name}/{key} gave {len(data)} of {size} bytes from {offset} on"
                raise StoreTransientError(msg)
            scatter(memoryview(data), targets)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object under the folder, past any cache of listings."""
        with self._doing("listing", prefix):
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._path(prefix), detail=True)
            except FileNotFoundError:
                return
        for path, info in found.items():
            if info["type"] == "directory":
                continue  # some servers keep an empty folder, and list it
            etag = info.get("ETag")
            version = etag.strip('"') if isinstance(etag, str) else None
            yield ObjectInfo(path[len(self._root) :].lstrip("/"), int(info["size"] or 0), version)

    def delete(self, keys: Collection[str]) -> None:
        """Delete one by one: a missing one must not hide the others."""
        for key in keys:
            with self._doing("deleting", key), contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._path(key))

    def abandon(self, prefix: str, keep: Collection[str]) -> None:
        """Nothing: fsspec does not tell of uploads that were begun."""

    def sign(self, key: str, expires_s: int) -> str:
        """By the filesystem; S3, Azure and Google sign without asking the server."""
        path = self._path(key)
        with self._doing("signing a URL for", key):
            try:
                return str(self._fs.sign(path, expiration=expires_s))
            except NotImplementedError:
                return str(self._fs.unstrip_protocol(path))

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _doing(self, verb: str, key: str) -> contextlib.AbstractContextManager[None]:
        return translated(f"{verb} {self._name}/{key}", self._secrets)


def _defaults(scheme: str) -> dict[str, Any]:
    """Options that every store needs: no stale listings, no shared client, no endless waits."""
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme in _S3:
        timeouts = {"connect_timeout": _CONNECT_S, "read_timeout": _READ_S}
        options["config_kwargs"] = {**timeouts, "retries": {"max_attempts": 1}}
    return options


def download_url(url: str, target: Path) -> None:
    """Copy the object at `url` to the local file `target`: one that no job wrote.

    Raises:
        CheckpointNotFoundError: there is none.
        StoreError: the store refused.
    """
    scheme = url.partition("://")[0]
    if scheme in _S3:
        _check_no_user(url)
        from bt_lightning.store.s3.store import S3Store  # it is built upon this module

        S3Store(url, {}).save(target)
        return
    import fsspec

    with translated(f"downloading {redact(url)}", known_secrets(url, {}, os.environ)):
        filesystem, path = fsspec.core.url_to_fs(url, **_defaults(scheme))
        try:
            filesystem.get_file(path, str(target))
        except FileNotFoundError:
            msg = f"there is no {redact(url)}"
            raise CheckpointNotFoundError(msg) from None


def _discard(target: Any) -> None:
    """Give up a file that is being written: closing it would make a whole object of a half."""
    with contextlib.suppress(Exception):  # the error that led here counts
        target.discard()
    with contextlib.suppress(AttributeError):  # of a file in memory, which only close() publishes
        target.closed = True


def _says_exists(error: OSError) -> bool:
    """Whether a conditional write was refused because the key is taken.

    s3fs raises `OSError(EINVAL, ...)` with the server's message on the real protocol, which Ceph
    leaves out: then botocore's error behind it says what it is. A concurrent conditional write
    answers 409.
    """
    told = getattr(error.__cause__, "response", None) or {}
    text = f"{error} {told.get('Error', {}).get('Code')}"
    return isinstance(error, FileExistsError) or any(
        word in text for word in ("PreconditionFailed", "pre-conditions", "ConditionalRequest")
    )


def open_store(
    url: str,
    storage_options: Mapping[str, object] | None = None,
    journal: Path | None = None,
    sending: Sending = AS_IT_GOES,
) -> Store:
    """The store at `url`: a plain path, `file://`, or any scheme that fsspec knows here.

    `journal` is a directory of the one process that sends; with it, uploads to S3 that were cut
    off go on where they were. Without it, they begin anew. What is a folder here is sent without a
    limit.

    Raises:
        InvalidSettingError: nobody knows the scheme, its package is not installed, or the path is
            relative and does not say so by `./`.
        StoreError: the options were refused.
    """
    folder = plain_folder(url)
    if folder is not None:
        return LocalStore(Path(folder).absolute())
    scheme = url.partition("://")[0]
    options = storage_options or {}
    if scheme in _S3:
        _check_no_user(url)
        from bt_lightning.store.s3.quick import quick

        def opened() -> Store:
            _check_known(scheme, url)
            from bt_lightning.store.s3.store import S3Store  # it is built upon this module

            return S3Store(url, options, journal, sending=sending)

        return opened() if journal else quick(url, options, os.environ, opened)
    _check_known(scheme, url)
    store = FsspecStore(url, options, sending)
    native = _NATIVE.get(scheme)
    return store if native is None else native(store, url, options, os.environ)


def _check_no_user(url: str) -> None:
    """S3 has no such form, and its clients take key and secret for a part of the bucket's name."""
    rest = url.partition("://")[2]
    bucket = rest.partition("/")[0]
    if (":" not in bucket and "@" not in bucket) or bucket.startswith("arn:"):
        return
    msg = (
        f"the store URL names a user before {rest.rpartition('@')[2]!r}, which s3:// does not have:"
        " set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give storage_options={'key': ...,"
        " 'secret': ...}"
    )
    raise InvalidSettingError(msg)


def _check_known(scheme: str, url: str) -> None:
    import fsspec

    try:
        fsspec.get_filesystem_class(scheme)
    except ValueError as error:
        msg = (
            f"the store URL {redact(url)!r} has the scheme {scheme!r}, which no fsspec filesystem"
            " serves: use s3://, gs://, az://, file:// or another that fsspec knows"
        )
        raise InvalidSettingError(msg) from error
    except ImportError as error:
        msg = f"the store URL {redact(url)!r} needs a package that is not installed: {error}"
        raise InvalidSettingError(msg) from error
