"""What the package asks of a store, in its own words, and the translation of what stores raise.

Whether another try may help is decided here, once, by type; nothing above looks at an error again.
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
from bt_lightning.layout import MANIFEST
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
"""Base classes of botocore, aiohttp and gcsfs, by name: those packages may not be installed. That
of asyncio is another than the built-in one in Python 3.10."""
_REFUSED = re.compile("4(?!08|29)[0-9]{2}|501")
"""Statuses of HTTP that another try does not change."""
_NO_ANSWER = {"OAuthError", "RefreshError", "ResponseError", "TransportError"}
_NO_TOKEN_EVER = re.compile(
    "invalid_(grant|client|scope|request)|unauthorized_client|access_denied|PERMISSION_DENIED"
    '|necessary fields|(Status: |"code": )40[0134]'
)
"""What google-auth raises when it has no token, and what it says when it will never have one."""


def most_bytes(key: str) -> int:
    """The most bytes that a small object at `key` may have to be read."""
    kind = file_limits.MANIFEST if key.rpartition("/")[2] == MANIFEST else file_limits.RECORD
    return kind.size


def read_any(store: Store, key: str) -> bytes | None:
    """The bytes of a small object, none of them if they are too many to be any of ours.

    For those who only ask whether there is one, or whether it is the one that they know.
    """
    try:
        return store.read(key)
    except CheckpointCorruptError as error:
        log.warning("taken for no object of ours: %s", error)
        return b""


def too_large(name: str, key: str) -> CheckpointCorruptError:
    """The error of an object of the store `name` that has more than `most_bytes`."""
    return CheckpointCorruptError(
        f"{name}/{key} is damaged: it has more than {most_bytes(key):,} bytes"
    )


class AnsweredTooSlowlyError(StoreTransientError):
    """Another try may succeed, but not at once: so long was waited already."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object of a store."""

    key: str
    size: int
    """Bytes."""
    version: str | None = field(default=None, compare=False)
    """Changes whenever the object's bytes do; None if the store does not tell. Hexadecimal MD5, if
    it has that form."""


class Source(Protocol):
    """Bytes to send, of a file or of memory; read by several threads at once."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def digest(self) -> str:
        """XXH3-128 of all bytes: an upload that was cut off goes on if it is the same."""

    @property
    def part_bytes(self) -> int:
        """Bytes that are best held at a time: a multiple of `BLOCK_BYTES`."""

    def hold(self, offset: int, size: int) -> contextlib.AbstractContextManager[memoryview]:
        """Those bytes, verified, for as long as the context lasts.

        `offset` is a multiple of `BLOCK_BYTES`, and so is `size`, unless it reaches the end.

        Raises `CheckpointCorruptError` if they are not the bytes that were saved.
        """

    def lend(self, offset: int, size: int) -> contextlib.AbstractContextManager[Lent]:
        """The same bytes without a copy, for a sender that looks at them piece by piece."""


class Lent(Protocol):
    """Bytes whose memory may be wanted back at any moment; one thread looks at them.

    Whoever wants it back waits for whoever looks: nobody waits for anything within a look.
    """

    @property
    def size(self) -> int:
        """Bytes."""

    def view(self, start: int, stop: int) -> contextlib.AbstractContextManager[memoryview]:
        """Those of them, counted from the first that was lent; they lie in one block.

        Raises `CheckpointCorruptError` if they are not the bytes that were saved.
        """


@dataclass(frozen=True, slots=True)
class Reuse:
    """An object of the same store that holds some of a source's bytes at the same places."""

    key: str
    ranges: tuple[tuple[int, int], ...]
    """(offset, size) in bytes, ascending, apart; each offset is a multiple of `BLOCK_BYTES`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """How a user wants bytes to be sent."""

    bytes_s: float | None = None
    """Bytes a second that all connections together send at most; None for as many as go."""
    content_md5: bool = False
    """Whether S3 gets a `Content-MD5` with each part, for buckets that insist on it."""


AS_IT_GOES: Final = Sending()

ReadProgress = Callable[[int], object]
"""Takes bytes that have arrived so far; 0 when they will be written again."""


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
        """Whether sending there and writing to the local disk go well side by side."""

    def send(self, source: Source, key: str, reuse: Reuse | None = None) -> None:
        """Make `key` hold the bytes of `source`, replacing what is there; durable on return.

        What `reuse` names need not cross the network. If it cannot be used, everything is sent.
        Our errors of `source` pass through, and leave `key` without those bytes.
        """

    def put(self, key: str, data: bytes) -> None:
        """Write a small object, replacing what is there; durable on return."""

    def put_new(self, key: str, data: bytes) -> None:
        """Write a small object whole, if `key` is free; an equal one there counts as our own.

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

        The caller verifies: a client may deliver wrong bytes without an error. It need not wait
        for the last: a store may call `on_progress`, in this thread, with the number of bytes that are
        there so far, and calls it with 0 before it writes them again.

        Raises `CheckpointNotFoundError` if there is no such object, and `StoreTransientError` if
        fewer bytes came.
        """

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object under the folder `prefix`, as the store knows it now."""

    def delete(self, keys: Collection[str]) -> None:
        """Delete objects; those that are not there count as deleted."""

    def abandon(self, prefix: str, keep: Collection[str]) -> None:
        """Give up what `send` began under the folder `prefix` and never finished.

        Uploads to a key in `keep` stay: the next `send` to it goes on with them.
        """

    def sign(self, key: str, expires_s: int) -> str:
        """A URL that lets whoever has it read the object for `expires_s` seconds: a secret.

        Where the store signs nothing, the object's own URL, which needs the store's credentials.
        """


def redact(text: str, secrets: Collection[str] = ()) -> str:
    """`text` without `secrets`, without the user of a URL, and without what signs one."""
    return hide(text, secrets)


@contextlib.contextmanager
def translated(what: str, secrets: Collection[str] = ()) -> Iterator[None]:
    """Turn what a store's client raises into our two classes; `what` begins the message."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001 - clients raise whatever they like
        text = redact(f"{what}: {type(error).__name__}: {error}", secrets)
        raise class_of(error)(text) from None  # the cause's own text may hold a secret


def class_of(error: Exception) -> type[StoreTransientError | StorePermanentError]:
    """Whether another try may cure what a client raised."""
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
    """Whether google-auth had no token just then, which gcsfs calls invalid credentials."""
    while error is not None:
        kinds = {kind.__name__: kind.__module__ for kind in type(error).__mro__}
        if kinds.get("GoogleAuthError", "").startswith(
            "google.auth"
        ) and not kinds.keys().isdisjoint(_NO_ANSWER):
            return not _NO_TOKEN_EVER.search(str(error))
        error = error.__cause__
    return False
