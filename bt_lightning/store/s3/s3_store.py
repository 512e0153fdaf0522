"""S3 as a store: s3fs finds credentials and endpoint; requests go over `HttpConnections`."""

from __future__ import annotations

import contextlib
import mmap
from functools import partial
from typing import TYPE_CHECKING, Any

from bt_lightning.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
)
from bt_lightning.path_layout import under
from bt_lightning.store.backends.fsspec_store import FsspecStore
from bt_lightning.store.interface import (
    AS_IT_GOES,
    ObjectInfo,
    Reuse,
    most_bytes,
    redact,
    too_large,
)
from bt_lightning.store.s3.http_connection import BodyTarget
from bt_lightning.store.s3.list_objects import list_objects
from bt_lightning.store.s3.listing_pages import parse_page
from bt_lightning.store.s3.multipart_journal import MultipartJournal
from bt_lightning.store.s3.object_upload import Uploader
from bt_lightning.store.s3.operations import Api, retried
from bt_lightning.store.s3.part_plan import PART_BYTES
from bt_lightning.store.s3.progress_timeout import Allowance
from bt_lightning.store.s3.request_errors import (
    MISSING,
    NO_BUCKET,
    TAKEN,
    Failure,
    TooLarge,
    of_store,
)
from bt_lightning.store.s3.response_checks import PAGE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from bt_lightning.store.interface import ReadProgress, Sending, Source
    from bt_lightning.store.s3.listing_pages import ListingPage

_OK = 200
_LISTING = {
    "prefix": "Prefix",
    "delimiter": "Delimiter",
    "start-after": "StartAfter",
    "continuation-token": "ContinuationToken",
}
_RANGE = "416"
_CHANGED = frozenset({"412", "PreconditionFailed"})


class S3Store(FsspecStore):
    """A `Store` over S3 or a compatible server. Must not be used after a fork."""

    def __init__(
        self,
        url: str,
        storage_options: Mapping[str, object],
        journal: Path | None = None,
        *,
        part_bytes: int = PART_BYTES,
        sending: Sending = AS_IT_GOES,
    ) -> None:
        """Open the store.

        `journal` is a directory of the one process that uploads, for the records of its unfinished
        uploads. `part_bytes` is a multiple of `BLOCK_BYTES`, at least two blocks.
        """
        super().__init__(url, storage_options, sending)
        bucket, self._base, self._version = self._fs.split_path(self._root)
        self._api = Api(self._fs, bucket)
        self._uploader = Uploader(
            self._api,
            self._name,
            MultipartJournal(journal) if journal else None,
            part_bytes=part_bytes,
            sending=sending,
        )

    def send(self, source: Source, key: str, reuse: Reuse | None = None) -> None:
        """Upload in one request, or in parallel parts; resume an interrupted upload."""
        with self._doing("uploading", key):
            if reuse is not None:
                reuse = Reuse(self._key(reuse.key), reuse.ranges)
            self._uploader.send(source, self._key(key), reuse)

    def put(self, key: str, data: bytes) -> None:
        """Write in one request."""
        with self._doing("writing", key):
            self._uploader.put(data, self._key(key))

    def put_new(self, key: str, data: bytes) -> None:
        """Write in one request, with `If-None-Match: *`."""
        with self._doing("writing", key):
            try:
                self._uploader.put(data, self._key(key), new=True)
            except Failure as failure:
                if failure.code not in TAKEN:
                    raise
                if self.read(key) != data:  # equal: our own success whose answer was lost
                    msg = f"{self._name}/{key} exists and holds other bytes"
                    raise CheckpointExistsError(msg) from None

    def read(self, key: str) -> bytes | None:
        """Read in one request."""
        with self._doing("reading", key):
            allowance = Allowance(most_bytes(key))
            try:
                reply = self._api.transfer("get_object", allowance=allowance, Key=self._key(key))
            except TooLarge as failure:
                raise too_large(self._name, key) from failure
            except Failure as failure:
                if failure.code in {*MISSING, NO_BUCKET}:
                    return None
                raise
            return reply.body

    def size(self, key: str) -> int | None:
        """Ask for the object's metadata."""
        with self._doing("reading", key):
            answer = self._uploader.head(self._key(key))
            return None if answer is None else int(answer["ContentLength"])

    def read_into(
        self, key: str, offset: int, *targets: memoryview, on_progress: ReadProgress = int
    ) -> None:
        """Download that range in one request, straight into `targets`."""
        size = sum(map(len, targets))
        if not size:
            return
        with self._doing("downloading", key):
            try:
                retried(
                    lambda: self._read_once(key, offset, size, BodyTarget(targets, on_progress))
                )
            except Failure as failure:
                if failure.code in MISSING:
                    msg = f"there is no {self._name}/{key}"
                    raise CheckpointNotFoundError(msg) from None
                raise

    def head(self, key: str) -> dict[str, Any] | None:
        """S3's answer about the object, with the checksums that it stored; None if there is none.

        An empty key is the store's own URL, with the version that it names.
        """
        version = None if key else self._version
        with self._doing("reading", key):
            asked = {"Key": self._key(key), "VersionId": version, "ChecksumMode": "ENABLED"}
            try:
                return self._api.call("head_object", **asked)
            except Failure as failure:
                if failure.code in {*MISSING, NO_BUCKET}:
                    return None
                raise

    def read_version(
        self, key: str, etag: str, offset: int, target: memoryview, on_progress: ReadProgress = int
    ) -> bool:
        """Fill `target` from `offset` on, in one request; False if the object's ETag is another."""
        named: dict[str, Any] = {"VersionId": None if key else self._version}
        if etag:
            named["IfMatch"] = f'"{etag}"'
        with self._doing("downloading", key):
            try:
                into = BodyTarget([target], on_progress)
                self._read_once(key, offset, len(target), into, **named)
            except Failure as failure:
                if failure.code in MISSING | _CHANGED:
                    return False
                raise
        return True

    def save(self, target: Path) -> None:
        """Download the object at the store's own URL to a local file, in one request."""
        named: dict[str, Any] = {"Key": self._base, "VersionId": self._version}
        with self._doing("downloading", ""), target.open("w+b") as file:
            try:
                found = retried(lambda: self._api.call("head_object", **named))
            except Failure as failure:
                if failure.code not in {*MISSING, NO_BUCKET}:
                    raise
                msg = f"there is no {self._name}"
                raise CheckpointNotFoundError(msg) from None
            size = int(found["ContentLength"])
            file.truncate(size)
            if not size:
                return
            with mmap.mmap(file.fileno(), size) as memory, memoryview(memory) as whole:
                named["IfMatch"] = found["ETag"]
                retried(lambda: self._read_once("", 0, size, BodyTarget([whole], int), **named))

    def _read_once(self, key: str, offset: int, size: int, into: BodyTarget, **named: Any) -> None:
        span = f"bytes={offset}-{offset + size - 1}"
        asked: dict[str, Any] = {"Key": self._key(key), "Range": span, **named}
        try:
            reply = self._api.transfer("get_object", into=into, **asked)
        except Failure as failure:
            if failure.code in {_RANGE, "InvalidRange"}:
                msg = f"it ends before {offset}"
                raise Failure(msg, transient=True) from None
            raise
        if reply.status == _OK and offset:
            msg = "the server does not know ranges"
            raise Failure(msg, transient=False)
        if reply.filled != size:
            msg = f"gave {reply.filled} of {size} bytes from {offset} on"
            raise Failure(msg, transient=True)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """List a thousand objects per request; a missing bucket is an error."""
        folder = self._key(prefix)
        asked = f"{folder}/" if folder else ""
        with self._doing("listing", prefix):
            found = list_objects(partial(self._page, asked), ordered=not self._is_directory())
            if not found:
                self._check_bucket()
        cut = len(self._key("")) + 1 if self._base else 0
        return (ObjectInfo(key[cut:], size, version) for key, size, version in found)

    def _page(self, prefix: str, query: Mapping[str, str]) -> ListingPage:
        """One page of a listing; called by several threads."""
        named = {_LISTING[name]: value for name, value in query.items()}
        asked: dict[str, Any] = {"Prefix": prefix, "EncodingType": "url", **named}
        reply = self._api.transfer("list_objects_v2", allowance=PAGE, **asked)
        try:
            return parse_page(reply.body, asked["Prefix"])
        except ValueError as error:
            raise Failure(str(error), transient=True) from None

    def _is_directory(self) -> bool:
        """Whether it is a directory bucket (S3 Express), whose listings have no order."""
        return self._api.bucket.endswith("--x-s3")

    def delete(self, keys: Collection[str]) -> None:
        """Delete one by one: not every server supports more, and a missing key is no error."""
        for key in keys:
            with self._doing("deleting", key):
                try:
                    self._api.call("delete_object", Key=self._key(key))
                except Failure as failure:
                    if failure.code not in MISSING:
                        raise

    def _check_bucket(self) -> None:
        try:
            self._api.call("head_bucket")
        except Failure as failure:
            if failure.code not in {*MISSING, NO_BUCKET}:
                return  # the listing was answered: this user may list, but not ask for the bucket
            raise Failure(str(failure), code=NO_BUCKET, transient=False) from None

    def sign(self, key: str, expires_s: int) -> str:
        """Presign by AWS signature version 4: S3 requires it for objects encrypted with KMS."""
        with self._doing("signing a URL for", key):
            return self._api.url(self._key(key), expires_s)

    def abandon(self, prefix: str, keep: Collection[str]) -> None:
        """Abort multipart uploads: those that the server lists, and those in the journal."""
        with self._doing("giving up uploads under", prefix):
            folder = self._key(prefix)
            kept = {self._key(key) for key in keep}
            self._uploader.abandon(f"{folder}/" if folder else "", kept)

    def _key(self, key: str) -> str:
        """The bucket's key for a key of the store."""
        return under(self._base, key) if key else self._base

    @contextlib.contextmanager
    def _doing(self, verb: str, key: str) -> Iterator[None]:
        """Translate failures to store errors, without secrets."""
        what = f"{verb} {self._name}/{key}"
        with super()._doing(verb, key):
            try:
                yield
            except Failure as failure:
                if failure.code == NO_BUCKET:
                    what = f"{what}: there is no bucket {self._api.bucket}"
                text = redact(f"{what}: {failure}", self._secrets | self._api.secrets)
                raise of_store(failure, text) from None
