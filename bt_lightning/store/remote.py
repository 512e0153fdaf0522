"""Any fsspec filesystem as a store, by plain fsspec calls; and how a URL becomes a store."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec

from bt_lightning.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    InvalidSettingError,
)
from bt_lightning.store.local import LocalStore
from bt_lightning.store.port import ObjectInfo, Store, redact, secrets_of, translated

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

_CONNECT_S = 10
_READ_S = 60


class FsspecStore:
    """A `Store` over an fsspec filesystem."""

    def __init__(self, url: str, storage_options: Mapping[str, object]) -> None:
        self._secrets = secrets_of(dict(storage_options))
        self._name = redact(url, self._secrets).rstrip("/")
        options: dict[str, Any] = {**_defaults(url.partition("://")[0]), **storage_options}
        with translated(f"opening {self._name}", self._secrets):
            self._fs, root = fsspec.core.url_to_fs(url, **options)
        self._root = root.rstrip("/")

    @property
    def name(self) -> str:
        """The URL without secrets."""
        return self._name

    def put_file(self, source: Path, key: str) -> None:
        """Upload; S3-like stores show the object when it is complete."""
        with self._doing("uploading", key):
            self._fs.put_file(str(source), self._path(key))

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
            try:
                return bytes(self._fs.cat_file(self._path(key)))
            except (FileNotFoundError, IsADirectoryError):
                return None

    def get_file(self, key: str, target: Path) -> None:
        """Download; the caller verifies, since a client may leave wrong bytes without an error."""
        with self._doing("downloading", key):
            try:
                self._fs.get_file(self._path(key), str(target))
            except FileNotFoundError:
                msg = f"there is no {self._name}/{key}"
                raise CheckpointNotFoundError(msg) from None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object under the folder, past any cache of listings."""
        with self._doing("listing", prefix):
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._path(prefix), detail=True)
            except FileNotFoundError:
                return
        for path, info in found.items():
            yield ObjectInfo(path[len(self._root) :].lstrip("/"), int(info["size"] or 0))

    def delete(self, keys: Collection[str]) -> None:
        """Delete one by one: a missing one must not hide the others."""
        for key in keys:
            with self._doing("deleting", key), contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._path(key))

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _doing(self, verb: str, key: str) -> contextlib.AbstractContextManager[None]:
        return translated(f"{verb} {self._name}/{key}", self._secrets)


def _defaults(scheme: str) -> dict[str, Any]:
    """Options that every store needs: no stale listings, no shared client, no endless waits."""
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme in {"s3", "s3a"}:
        timeouts = {"connect_timeout": _CONNECT_S, "read_timeout": _READ_S}
        options["config_kwargs"] = {**timeouts, "retries": {"max_attempts": 1}}
    return options


def _says_exists(error: OSError) -> bool:
    """Whether a conditional write was refused because the key is taken.

    s3fs raises `OSError(EINVAL, "PreconditionFailed")` on the real protocol; a concurrent
    conditional write answers 409.
    """
    text = str(error)
    return isinstance(error, FileExistsError) or any(
        word in text for word in ("PreconditionFailed", "pre-conditions", "ConditionalRequest")
    )


def open_store(url: str, storage_options: Mapping[str, object] | None = None) -> Store:
    """The store at `url`: a plain path, `file://`, or any scheme that fsspec knows here.

    Raises:
        InvalidSettingError: nobody knows the scheme, or its package is not installed.
        StoreError: the options were refused.
    """
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme in {"", "file", "local"}:
        return LocalStore(Path(url.partition("://")[2] if scheme else url).absolute())
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
    return FsspecStore(url, storage_options or {})
