"""A store whose bytes go through obstore, and all else through fsspec.

Used by the worker, which was spawned: a client of obstore hangs in a forked process.
"""

from __future__ import annotations

import contextlib
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol

from bt_lightning.errors import CheckpointError, CheckpointNotFoundError, StoreTransientError
from bt_lightning.store.parallel import scatter
from bt_lightning.store.port import Store, translated
from bt_lightning.store.sources import PIECE_BYTES, pieces, whole

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from bt_lightning.store.port import Arrived, ObjectInfo, Reuse, Source

_AT_ONCE: Final = 4
_PLAIN_KEY: Final = re.compile(r"[\w @=+,.~/-]+", re.ASCII)
"""Keys that both clients are known to spell alike."""
_REFUSED: Final = re.compile(r"status code: 4(?!08|16|29)\d\d")
_CLIENT: Final = {"connect_timeout": "10s", "timeout": "120s"}
_RETRY: Final = {"max_retries": 3, "retry_timeout": timedelta(seconds=60)}


class Limited(Store, Protocol):
    """A store over a filesystem of fsspec, which keeps to the user's limit."""

    @property
    def filesystem(self) -> Any:
        """The filesystem of fsspec, for what only one kind of store can be asked."""

    def proceed(self, size: int) -> None:
        """Wait until so many bytes may be sent."""


class NativeStore:
    """A `Store` that sends and reads by `client`, and asks `inner` for everything else.

    Args:
        inner: the same place through fsspec.
        client: an obstore store, made for the bucket.
        folder: where `inner` has its root in the bucket; empty for the bucket itself.
        secrets: texts that no message may hold.
        most_parts: the most that an object may be sent in.
    """

    distant = True

    def __init__(
        self, inner: Limited, client: Any, folder: str, secrets: Collection[str], most_parts: int
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
        """Upload in parts side by side; they become an object when the last has arrived."""
        import obstore

        path = self._path(key)
        copied = reuse is not None and whole(source, reuse.ranges)
        if copied or not _PLAIN_KEY.fullmatch(path):
            self._inner.send(source, key, reuse)
            return
        with self._doing("uploading", key), self._sending(path) as tell:
            if source.size <= PIECE_BYTES:
                with source.hold(0, source.size) as data:
                    obstore.put(self._client, path, self._due(data, tell), use_multipart=False)
                return
            part = PIECE_BYTES * -(-source.size // (PIECE_BYTES * self._most_parts))
            # a piece is good until the next is asked for, a part until it is sent
            parts = (self._due(piece, tell) for piece in pieces(source))
            obstore.put(
                self._client,
                path,
                parts,
                use_multipart=True,
                chunk_size=part,
                max_concurrency=_AT_ONCE,
            )

    def _due(self, piece: memoryview, tell: Callable[[bytes], None]) -> bytes:
        self._inner.proceed(len(piece))
        data = bytes(piece)
        tell(data)
        return data

    @contextlib.contextmanager
    def _sending(self, path: str) -> Iterator[Callable[[bytes], None]]:  # noqa: ARG002
        """Around one upload; what comes out of it is told each byte, in their order."""
        yield lambda _: None

    def read_into(
        self,
        key: str,
        offset: int,
        *targets: memoryview,
        arrived: Arrived = int,  # noqa: ARG002
    ) -> None:
        """Download that range in one request."""
        import obstore

        path, size = self._path(key), sum(map(len, targets))
        if not size or not _PLAIN_KEY.fullmatch(path):
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
        """By fsspec."""
        self._inner.put(key, data)

    def put_new(self, key: str, data: bytes) -> None:
        """By fsspec."""
        self._inner.put_new(key, data)

    def read(self, key: str) -> bytes | None:
        """By fsspec."""
        return self._inner.read(key)

    def size(self, key: str) -> int | None:
        """By fsspec."""
        return self._inner.size(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """By fsspec."""
        return self._inner.list(prefix)

    def delete(self, keys: Collection[str]) -> None:
        """By fsspec."""
        self._inner.delete(keys)

    def abandon(self, prefix: str, keep: Collection[str]) -> None:
        """By fsspec."""
        self._inner.abandon(prefix, keep)

    def sign(self, key: str, expires_s: int) -> str:
        """By fsspec."""
        return self._inner.sign(key, expires_s)

    def _path(self, key: str) -> str:
        return f"{self._folder}/{key}" if self._folder else key

    @contextlib.contextmanager
    def _doing(self, verb: str, key: str) -> Iterator[None]:
        with translated(f"{verb} {self.name}/{key}", self._secrets):
            try:
                yield
            except (CheckpointError, FileNotFoundError):
                raise
            except Exception as error:  # noqa: BLE001 - its classes are not known without it
                raise _plain(error) from None  # its text tells the whole request


def connected(kind: Any, bucket: str, config: Mapping[str, object], *, http: bool) -> Any:
    """A client of obstore's class `kind`; plain HTTP only if the user says so.

    Raises:
        OSError: it refuses `config`.
    """
    try:
        return kind(
            bucket,
            **config,
            client_options={**_CLIENT, "allow_http": http},
            retry_config=_RETRY,
        )
    except Exception as error:  # noqa: BLE001 - its classes are not known without it
        raise _plain(error) from None


def _plain(error: Exception) -> OSError:
    """An error of obstore by a class that the port knows, without the request that it quotes."""
    text = str(error).partition("\n\nDebug source")[0]
    text = " ".join(text.split())[:1000]
    kind = type(error).__name__
    if kind in {"PermissionDeniedError", "UnauthenticatedError"}:
        return PermissionError(text)
    if kind == "GenericError" and not _REFUSED.search(text):
        return ConnectionError(text)
    return OSError(text)
