"""A store that uploads and downloads through obstore, and does everything else through fsspec.

Used by the worker, which was spawned: an obstore client hangs in a forked process.
"""

from __future__ import annotations

import contextlib
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol

from bt_lightning.errors import CheckpointError, CheckpointNotFoundError, StoreTransientError
from bt_lightning.store.interface import Store, translated
from bt_lightning.store.transfer.file_source import PIECE_BYTES, covers_all, pieces
from bt_lightning.store.transfer.parallel_reads import scatter

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from bt_lightning.store.interface import ObjectInfo, ReadProgress, Reuse, Source

_AT_ONCE: Final = 4
_PLAIN: Final = re.compile(r"(?!\.\.?(/|$))[\w @=+,.~-]+", re.ASCII)
_REFUSED: Final = re.compile(r"status code: (4(?!08|16|29)\d\d|501)")
_UPLOAD: Final = re.compile("uploadId=|NoSuchUpload")
_CLIENT: Final = {"connect_timeout": "10s", "timeout": "120s"}
_RETRY: Final = {"max_retries": 3, "retry_timeout": timedelta(seconds=60)}


def plain(path: str) -> bool:
    """Whether both clients are known to encode this path of a bucket in the same way."""
    return all(_PLAIN.fullmatch(part) for part in path.split("/"))


class ThrottledStore(Store, Protocol):
    """A store over an fsspec filesystem with a bandwidth limit."""

    @property
    def filesystem(self) -> Any:
        """The fsspec filesystem, for calls that only one kind of store has."""

    def throttle(self, size: int) -> None:
        """Wait until the bandwidth limit allows `size` bytes."""


class NativeStore:
    """A `Store` that sends and reads by `client`, and asks `inner` for everything else.

    Args:
        inner: the same store through fsspec.
        client: an obstore store of the bucket.
        folder: the root of `inner` in the bucket; empty for the bucket itself.
        secrets: texts that no message may hold.
        most_parts: the largest number of parts of an object.
    """

    distant = True

    def __init__(
        self,
        inner: ThrottledStore,
        client: Any,
        folder: str,
        secrets: Collection[str],
        most_parts: int,
    ) -> None:
        self._inner = inner
        self._client = client
        self._folder = folder
        self._secrets = secrets
        self._most_parts = most_parts

    @property
    def name(self) -> str:
        """The inner store's."""
        return self._inner.name

    def send(self, source: Source, key: str, reuse: Reuse | None = None) -> None:
        """Upload parts in parallel; they become an object when the last one has arrived."""
        import obstore

        path = self._path(key)
        copied = reuse is not None and covers_all(source, reuse.ranges)
        if copied or not plain(path):
            self._inner.send(source, key, reuse)
            return
        with self._doing("uploading", key), self._sending(path) as on_bytes:
            if source.size <= PIECE_BYTES:
                with source.hold(0, source.size) as data:
                    whole = self._throttled(data, on_bytes)
                    obstore.put(self._client, path, whole, use_multipart=False)
                return
            part = PIECE_BYTES * -(-source.size // (PIECE_BYTES * self._most_parts))
            parts = _Parts(self._throttled(piece, on_bytes) for piece in pieces(source))
            try:
                obstore.put(
                    self._client,
                    path,
                    parts,
                    use_multipart=True,
                    chunk_size=part,
                    max_concurrency=_AT_ONCE,
                )
            except Exception:
                if parts.failure is not None:  # obstore may raise that it cannot abort instead
                    raise parts.failure from parts.failure.__cause__
                raise

    def _throttled(self, piece: memoryview, on_bytes: Callable[[bytes], None]) -> bytes:
        """A copy of a piece, as soon as the bandwidth limit allows to send it."""
        self._inner.throttle(len(piece))
        data = bytes(piece)
        on_bytes(data)
        return data

    @contextlib.contextmanager
    def _sending(self, path: str) -> Iterator[Callable[[bytes], None]]:  # noqa: ARG002
        """Wrap one upload; the function that it yields is called with all bytes, in order."""
        yield lambda _: None

    def read_into(
        self,
        key: str,
        offset: int,
        *targets: memoryview,
        on_progress: ReadProgress = int,  # noqa: ARG002
    ) -> None:
        """Download that range in one request."""
        import obstore

        path, size = self._path(key), sum(map(len, targets))
        if not size or not plain(path):
            self._inner.read_into(key, offset, *targets)
            return
        with self._doing("downloading", key):
            try:
                data = obstore.get_range(self._client, path, start=offset, length=size)
            except FileNotFoundError:
                msg = f"there is no {self.name}/{key}"
                raise CheckpointNotFoundError(msg) from None
            if len(data) != size:
                msg = f"{self.name}/{key} gave {len(data)} of {size} bytes from {offset} on"
                raise StoreTransientError(msg)
            scatter(memoryview(data), targets)

    def put(self, key: str, data: bytes) -> None:
        """Ask fsspec."""
        self._inner.put(key, data)

    def put_new(self, key: str, data: bytes) -> None:
        """Ask fsspec."""
        self._inner.put_new(key, data)

    def read(self, key: str) -> bytes | None:
        """Ask fsspec."""
        return self._inner.read(key)

    def size(self, key: str) -> int | None:
        """Ask fsspec."""
        return self._inner.size(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Ask fsspec."""
        return self._inner.list(prefix)

    def delete(self, keys: Collection[str]) -> None:
        """Ask fsspec."""
        self._inner.delete(keys)

    def abandon(self, prefix: str, keep: Collection[str]) -> None:
        """Ask fsspec."""
        self._inner.abandon(prefix, keep)

    def sign(self, key: str, expires_s: int) -> str:
        """Ask fsspec."""
        return self._inner.sign(key, expires_s)

    def _path(self, key: str) -> str:
        return f"{self._folder}/{key}" if self._folder else key

    @contextlib.contextmanager
    def _doing(self, verb: str, key: str) -> Iterator[None]:
        with translated(f"{verb} {self.name}/{key}", self._secrets):
            try:
                yield
            except CheckpointError:
                raise
            except Exception as error:
                cause = self._cause(error)
                if cause is error:
                    raise
                raise cause from cause.__cause__  # not from obstore's: its text quotes the request

    def _cause(self, error: Exception) -> Exception:
        """The error to raise: one of obstore's is translated, any other is kept."""
        return _translated(error)


def make_client(kind: Any, bucket: str, config: Mapping[str, object], *, http: bool) -> Any:
    """A client of obstore's class `kind`; `http` allows an endpoint without TLS.

    Raises:
        OSError: obstore refuses `config`.
    """
    try:
        return kind(
            bucket,
            **config,
            client_options={**_CLIENT, "allow_http": http},
            retry_config=_RETRY,
        )
    except Exception as error:  # noqa: BLE001 - its classes are not known without it
        raise _translated(error) from None


class _Parts:
    """The parts of an upload, and the error that the source raised while they were made."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self.failure: Exception | None = None
        """The source's error; None if there was none."""

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._parts)
        except StopIteration:
            raise
        except Exception as error:
            self.failure = error
            raise


def _translated(error: Exception) -> Exception:
    """Translate an obstore error to a built-in class, without the request that it quotes."""
    missing = isinstance(error, FileNotFoundError)
    if not missing and not type(error).__module__.startswith("obstore"):
        return error
    text = str(error).partition("\n\nDebug source")[0]
    gone = missing and _UPLOAD.search(str(error))
    text = " ".join(text.split())[:1000]
    kind = type(error).__name__
    if gone:  # another process aborted the upload; another try starts a new one
        return ConnectionError(text)
    if missing:
        return FileNotFoundError(text)
    if kind in {"PermissionDeniedError", "UnauthenticatedError"}:
        return PermissionError(text)
    if kind == "GenericError" and not _REFUSED.search(text):
        return ConnectionError(text)
    return OSError(text)
