"""S3 as a store: small objects, listings and deletes by s3fs, the bytes of files by our engine."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointNotFoundError, StorePermanentError, StoreTransientError
from bt_lightning.layout import under
from bt_lightning.store.port import AS_IT_GOES, ObjectInfo, Reuse, redact
from bt_lightning.store.remote import FsspecStore
from bt_lightning.store.s3.api import Api, retried
from bt_lightning.store.s3.failures import MISSING, Failure
from bt_lightning.store.s3.journal import Journal
from bt_lightning.store.s3.plan import PART_BYTES
from bt_lightning.store.s3.upload import Uploader
from bt_lightning.store.s3.wire import Into

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from bt_lightning.store.port import Arrived, Sending, Source

_OK = 200
_RANGE = "416"


class S3Store(FsspecStore):
    """A `Store` over S3 or a server that speaks its protocol. Not for use after a fork."""

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

        `journal` is a directory of one writer's, in which uploads that are cut off are remembered.
        `part_bytes` is a multiple of `BLOCK_BYTES`, at least two.
        """
        super().__init__(url, storage_options, sending)
        bucket, self._base, _ = self._fs.split_path(self._root)
        self._api = Api(self._fs, bucket)
        self._uploader = Uploader(
            self._api,
            self._name,
            Journal(journal) if journal else None,
            part_bytes=part_bytes,
            sending=sending,
        )

    def send(self, source: Source, key: str, reuse: Reuse | None = None) -> None:
        """Upload in one request, or in parts side by side; go on with an upload cut off before."""
        with self._doing("uploading", key):
            if reuse is not None:
                reuse = Reuse(self._key(reuse.key), reuse.ranges)
            self._uploader.send(source, self._key(key), reuse)

    def size(self, key: str) -> int | None:
        """Ask for the object's facts."""
        with self._doing("reading", key):
            answer = self._uploader.head(self._key(key))
            return None if answer is None else int(answer["ContentLength"])

    def read_into(
        self, key: str, offset: int, *targets: memoryview, arrived: Arrived = int
    ) -> None:
        """Download that range in one request, straight into `targets`."""
        size = sum(map(len, targets))
        if not size:
            return
        with self._doing("downloading", key):
            try:
                retried(lambda: self._read_once(key, offset, size, Into(targets, arrived)))
            except Failure as failure:
                if failure.code in MISSING:
                    msg = f"there is no {self._name}/{key}"
                    raise CheckpointNotFoundError(msg) from None
                raise

    def _read_once(self, key: str, offset: int, size: int, into: Into) -> None:
        span = f"bytes={offset}-{offset + size - 1}"
        try:
            reply = self._api.transfer("get_object", into=into, Key=self._key(key), Range=span)
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
        """As s3fs lists; but a bucket that is not there is an error, and no empty one."""
        found = list(super().list(prefix))
        if not found:
            with self._doing("listing", prefix):
                self._check_bucket()
        return iter(found)

    def _check_bucket(self) -> None:
        try:
            self._api.call("head_bucket")
        except Failure as failure:
            if failure.code not in {*MISSING, "NoSuchBucket"}:
                return  # it answered the listing: not everybody may ask this
            msg = f"there is no bucket {self._api.bucket}"
            raise Failure(msg, transient=False) from None

    def sign(self, key: str, expires_s: int) -> str:
        """By version 4 of AWS's signature: objects under a key of KMS are read by no other."""
        with self._doing("signing a URL for", key):
            return self._api.url(self._key(key), expires_s)

    def abandon(self, prefix: str, keep: Collection[str]) -> None:
        """Abort multipart uploads: those that the server lists, and those of the journal."""
        with self._doing("giving up uploads under", prefix):
            folder = self._key(prefix)
            kept = {self._key(key) for key in keep}
            self._uploader.abandon(f"{folder}/" if folder else "", kept)

    def _key(self, key: str) -> str:
        """A key of the store as one of the bucket."""
        return under(self._base, key) if key else self._base

    @contextlib.contextmanager
    def _doing(self, verb: str, key: str) -> Iterator[None]:
        """Turn failures into the errors of the port, without secrets."""
        what = f"{verb} {self._name}/{key}"
        with super()._doing(verb, key):
            try:
                yield
            except Failure as failure:
                kind = StoreTransientError if failure.transient else StorePermanentError
                raise kind(redact(f"{what}: {failure}", self._secrets)) from None
