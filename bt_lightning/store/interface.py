"""The `Store` protocol, and the translation of clients' exceptions into this package's errors.

Whether another try may help is decided here, once, by the error's type: `StoreTransientError` or
`StorePermanentError`. No caller inspects an error again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from bt_lightning import file_limits
from bt_lightning.errors import (
    CheckpointCorruptError,
    CheckpointError,
    StorePermanentError,
    StoreTransientError,
)
from bt_lightning.path_layout import MANIFEST, rank_of_part_record
from bt_lightning.store.secrets import hide

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

log = logging.getLogger(__name__)

_TRANSIENT_ERRNO = {
    errno.EAGAIN,
    errno.EBUSY,  # s3fs: SlowDown
    errno.EIO,
    errno.EREMOTEIO,  # s3fs: InternalError
    errno.ETIMEDOUT,
    errno.ECONNRESET,
    errno.ECONNREFUSED,
    errno.ECONNABORTED,
    errno.EPIPE,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.ESTALE,
}
_TRANSIENT_NAMES = {
    "ClientConnectionError",
    "ClientPayloadError",
    "ConnectionError",
    "HTTPClientError",
    "HttpError",
    "IncompleteReadError",
    "ResponseParserError",
    "TimeoutError",
}
"""Base classes of botocore, aiohttp and gcsfs, by name: those packages may not be installed. In
Python 3.10 the `TimeoutError` of asyncio is not the built-in one."""
_REFUSED = re.compile("4(?!08|29)[0-9]{2}|501")
"""HTTP statuses that another try does not change."""
_NO_ANSWER = {"OAuthError", "RefreshError", "ResponseError", "TransportError"}
_NO_TOKEN_EVER = re.compile(
    "invalid_(grant|client|scope|request)|unauthorized_client|access_denied|PERMISSION_DENIED"
    '|necessary fields|(Status: |"code": )40[0134]'
)
"""`_NO_ANSWER`: what google-auth raises when it has no token. `_NO_TOKEN_EVER`: the messages that
mean it will never have one."""


def most_bytes(key: str) -> int:
    """The limit, in bytes, for reading the small object at `key`."""
    name = key.rpartition("/")[2]
    large = name == MANIFEST or rank_of_part_record(name) is not None
    return (file_limits.MANIFEST if large else file_limits.RECORD).size


def read_any(store: Store, key: str) -> bytes | None:
    """The bytes of a small object; `b""` if it is larger than `most_bytes`, None if there is none.

    For callers that only ask whether the object exists, or whether it equals one that they know.
    """
    try:
        return store.read(key)
    except CheckpointCorruptError as error:
        log.warning("not an object of this package: %s", error)
        return b""


def too_large(name: str, key: str) -> CheckpointCorruptError:
    """The error for an object of the store `name` that is larger than `most_bytes`."""
    return CheckpointCorruptError(
        f"{name}/{key} is damaged: it has more than {most_bytes(key):,} bytes"
    )


class AnsweredTooSlowlyError(StoreTransientError):
    """A server answered too slowly: another try may succeed, but not right away."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object of a store."""

    key: str
    size: int
    """Bytes."""
    version: str | None = field(default=None, compare=False)
    """Changes whenever the object's bytes do (an ETag); None if the store does not tell. A value
    that looks like a hexadecimal MD5 is the MD5 of the bytes."""


class Source(Protocol):
    """Bytes to upload, from a file or from memory; read by several threads at once."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def digest(self) -> str:
        """XXH3-128 of all bytes: an interrupted upload is resumed only if it is the same."""

    @property
    def part_bytes(self) -> int:
        """The best size for `hold`, in bytes: a multiple of `BLOCK_BYTES`."""

    def hold(self, offset: int, size: int) -> contextlib.AbstractContextManager[memoryview]:
        """Verified bytes in memory, valid for as long as the context lasts.

        `offset` is a multiple of `BLOCK_BYTES`, and so is `size`, unless it reaches the end.

        Raises `CheckpointCorruptError` if they are not the bytes that were saved.
        """

    def lend(self, offset: int, size: int) -> contextlib.AbstractContextManager[Lent]:
        """The same bytes without a copy, for a sender that reads them piece by piece."""


class Lent(Protocol):
    """Bytes in memory that their owner may reclaim between two views; used by one thread.

    The owner waits while a view is open. So a reader must not wait for anything inside `view`.
    """

    @property
    def size(self) -> int:
        """Bytes."""

    def view(self, start: int, stop: int) -> contextlib.AbstractContextManager[memoryview]:
        """The bytes `start` to `stop`, counted from the first that was lent, within one block.

        Raises `CheckpointCorruptError` if they are not the bytes that were saved.
        """


@dataclass(frozen=True, slots=True)
class Reuse:
    """An object of the same store that has some of a source's bytes at the same offsets."""

    key: str
    ranges: tuple[tuple[int, int], ...]
    """(offset, size) in bytes, ascending, apart; each offset is a multiple of `BLOCK_BYTES`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """The user's settings for uploads."""

    bytes_s: float | None = None
    """Limit in bytes a second for all connections together; None for no limit."""
    content_md5: bool = False
    """Whether S3 gets a `Content-MD5` with each part, for buckets that insist on it."""


AS_IT_GOES: Final = Sending()

ReadProgress = Callable[[int], object]
"""Called with the number of bytes read so far; with 0 when they will be read again."""


class Store(Protocol):
    """A bucket, or a folder that stands in for one. Keys are posix paths relative to its root.

    Every method raises `StoreTransientError` when another try may succeed and
    `StorePermanentError` when it will not; both say what was tried.
    """

    @property
    def name(self) -> str:
        """The URL without secrets, for messages."""

    @property
    def distant(self) -> bool:
        """Whether uploads do not compete with the local disk, so that both can run at once."""

    def send(self, source: Source, key: str, reuse: Reuse | None = None) -> None:
        """Make `key` hold the bytes of `source`, replacing what is there; durable on return.

        The ranges of `reuse` are copied inside the store if it can; if not, everything is sent.
        Errors that `source` raises pass through, and leave `key` without its bytes.
        """

    def put(self, key: str, data: bytes) -> None:
        """Write a small object, replacing what is there; durable on return."""

    def put_new(self, key: str, data: bytes) -> None:
        """Write a small object whole if `key` is free; an equal object there counts as success.

        Raises `CheckpointExistsError` when `key` holds other bytes.
        """

    def read(self, key: str) -> bytes | None:
        """The bytes of a small object; None if there is none.

        Raises `CheckpointCorruptError` if they are more than `most_bytes`.
        """

    def size(self, key: str) -> int | None:
        """Bytes of the object; None if there is none."""

    def read_into(
        self, key: str, offset: int, *targets: memoryview, on_progress: ReadProgress = int
    ) -> None:
        """Fill `targets`, one after the other, with the object's bytes from `offset` on.

        Called by several threads.

        The caller verifies the bytes: a client may deliver wrong ones without an error. It can
        verify while they arrive: a store may call `on_progress`, in this thread, with the number of
        bytes that `targets` hold so far, and calls it with 0 before it writes them again.

        Raises `CheckpointNotFoundError` if there is no such object, and `StoreTransientError` if
        fewer bytes came.
        """

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object under the folder `prefix`, as the store lists it at this moment."""

    def delete(self, keys: Collection[str]) -> None:
        """Delete objects; those that are not there count as deleted."""

    def abandon(self, prefix: str, keep: Collection[str]) -> None:
        """Abort the unfinished uploads of `send` under the folder `prefix`.

        Uploads to a key in `keep` stay: the next `send` to that key resumes them.
        """

    def sign(self, key: str, expires_s: int) -> str:
        """A presigned URL: whoever has this secret can read the object for `expires_s` seconds.

        Where the store cannot sign, the object's own URL, which needs the store's credentials.
        """


def redact(text: str, secrets: Collection[str] = ()) -> str:
    """`text` without `secrets`, and without the user and the signature of any URL in it."""
    return hide(text, secrets)


@contextlib.contextmanager
def translated(what: str, secrets: Collection[str] = ()) -> Iterator[None]:
    """Turn a client's exception into one of the two store errors; `what` begins the message."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001 - clients raise whatever they like
        text = redact(f"{what}: {type(error).__name__}: {error}", secrets)
        raise class_of(error)(text) from None  # the cause's own text may hold a secret


def class_of(error: Exception) -> type[StoreTransientError | StorePermanentError]:
    """The store error for a client's exception: transient if another try may succeed."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if _no_token_yet(error):
        return StoreTransientError
    refused = str(getattr(error, "code", "")) if "HttpError" in names else ""
    if isinstance(error, PermissionError | FileNotFoundError) or _REFUSED.fullmatch(refused):
        return StorePermanentError
    if isinstance(error, TimeoutError | ConnectionError) or names & _TRANSIENT_NAMES:
        return StoreTransientError
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO:
        return StoreTransientError
    return StorePermanentError


def _no_token_yet(error: BaseException | None) -> bool:
    """Whether google-auth could not get a token at that moment; gcsfs calls it invalid credentials.

    The cause may be anywhere in the chain of exceptions.
    """
    while error is not None:
        kinds = {kind.__name__: kind.__module__ for kind in type(error).__mro__}
        if kinds.get("GoogleAuthError", "").startswith(
            "google.auth"
        ) and not kinds.keys().isdisjoint(_NO_ANSWER):
            return not _NO_TOKEN_EVER.search(str(error))
        error = error.__cause__
    return False
