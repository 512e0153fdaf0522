"""Upload one source to one object: in one request, in resumable parts, or by a server-side copy."""

from __future__ import annotations

import functools
import json
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import xxhash

from bt_lightning.store.bandwidth_limit import Bandwidth
from bt_lightning.store.interface import AS_IT_GOES
from bt_lightning.store.s3 import request_errors
from bt_lightning.store.s3.checksums import ChecksumChoice, checksum_named, content_md5
from bt_lightning.store.s3.concurrency import Concurrency
from bt_lightning.store.s3.multipart_uploads import MultipartUploads
from bt_lightning.store.s3.operations import retried
from bt_lightning.store.s3.part_plan import (
    COPY_BYTES,
    LEAST_BYTES,
    PART_BYTES,
    PLAN_VERSION,
    Copy,
    Send,
    part_size,
    plan_parts,
)
from bt_lightning.store.s3.part_senders import PartSenders
from bt_lightning.store.s3.request_errors import Failure
from bt_lightning.store.transfer.file_source import HeldBytes, covers_all

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from bt_lightning.store.interface import Lent, Reuse, Sending, Source
    from bt_lightning.store.s3.checksums import Checksum
    from bt_lightning.store.s3.http_connection import Reply
    from bt_lightning.store.s3.multipart_journal import MultipartJournal, UploadRecord
    from bt_lightning.store.s3.multipart_uploads import SentPart
    from bt_lightning.store.s3.operations import Api

_LOST: Final = frozenset({"InvalidPart", "InvalidPartOrder"})
"""Error codes of a server that no longer has the parts that it listed."""

_UNKNOWN: Final = request_errors.MISSING | request_errors.UNLISTED | {request_errors.NO_UPLOAD}
"""Error codes of a server that does not list the parts of an upload."""

Plan = tuple[Send | Copy, ...]


class Uploader:
    """Uploads sources to keys of one bucket. Raises `Failure`, and what a source raises."""

    def __init__(
        self,
        api: Api,
        store: str,
        journal: MultipartJournal | None,
        *,
        part_bytes: int = PART_BYTES,
        sending: Sending = AS_IT_GOES,
    ) -> None:
        self._api = api
        self._choice = ChecksumChoice()
        self._uploads = MultipartUploads(api, store, journal, self._choice)
        self._part_bytes = part_bytes
        self._bandwidth = Bandwidth(sending.bytes_s) if sending.bytes_s else None
        self._content_md5 = sending.content_md5

    def abandon(self, folder: str, keep: Collection[str]) -> None:
        """Abort uploads to keys that begin with `folder`, except keys in `keep`."""
        self._uploads.abandon(folder, keep)

    def head(self, key: str) -> dict[str, Any] | None:
        """The metadata of an object; None if there is no object."""
        return self._uploads.head(key)

    def send(self, source: Source, key: str, reuse: Reuse | None) -> None:
        """Make `key` hold the bytes of `source`; keys are those of the bucket."""
        etag = self._reusable(source, reuse)
        if reuse and etag:
            try:
                if covers_all(source, reuse.ranges) and source.size <= COPY_BYTES:
                    self._copy(key, reuse.key, etag)
                    self._uploads.end(key)
                    return
                if source.size > self._part_bytes:
                    self._in_parts(source, key, reuse, etag)
                    return
            except Failure as failure:
                if failure.transient:
                    raise
                # the server cannot copy, or the other object is gone: everything is sent
        if source.size <= self._part_bytes:
            with source.lend(0, source.size) as data:
                self._at_once(data, key)
            self._uploads.end(key)
        else:
            self._in_parts(source, key, None, "")

    def _reusable(self, source: Source, reuse: Reuse | None) -> str | None:
        """The ETag of the object to copy from; None if it cannot be used."""
        if reuse is None or not reuse.ranges:
            return None
        try:
            answer = self._uploads.head(reuse.key)
        except Failure as failure:
            if failure.transient:
                raise
            return None
        last, size = reuse.ranges[-1]
        stored = answer["ContentLength"] if answer else 0
        same = stored == source.size or not covers_all(source, reuse.ranges)
        return str(answer["ETag"]) if answer and last + size <= stored and same else None

    def _copy(self, key: str, from_key: str, etag: str) -> None:
        retried(
            lambda: self._api.call(
                "copy_object",
                Key=key,
                CopySource={"Bucket": self._api.bucket, "Key": from_key},
                CopySourceIfMatch=etag,
            )
        )

    def put(self, data: bytes, key: str, *, new: bool = False) -> None:
        """Upload a few bytes to `key` in one request; with `new`, only if `key` is free."""
        self._at_once(HeldBytes(memoryview(data)), key, IfNoneMatch="*" if new else None)

    def _at_once(self, data: Lent, key: str, **conditions: str | None) -> None:
        senders = PartSenders(Concurrency(data.size), self._bandwidth)
        for checksum in self._choice.candidates():
            value = checksum.of(data) if checksum else None
            send = functools.partial(
                self._bytes, "put_object", data, checksum, value, senders, Key=key, **conditions
            )
            try:
                retried(send)
            except Failure as failure:
                if checksum is None or failure.code not in request_errors.UNKNOWN_TO_SERVER:
                    raise
            else:
                break
        self._choice.settle(checksum)

    def _bytes(
        self,
        operation: str,
        data: Lent,
        checksum: Checksum | None,
        value: str | None,
        senders: PartSenders,
        **parameters: Any,
    ) -> Reply:
        """Send bytes, and compare the server's checksum with theirs."""
        if checksum is not None:
            parameters[checksum.parameter] = value
        if self._content_md5:
            parameters["ContentMD5"] = content_md5(data)
        reply = self._api.transfer(operation, data, throttle=senders.throttle, **parameters)
        if "etag" not in reply.headers:
            msg = "the answer names no ETag: no S3 server answers so"
            raise Failure(msg, transient=True)
        if checksum is not None:
            found = reply.headers.get(checksum.header)
            if found is None:
                self._choice.ignored(checksum)
            elif found != value:
                msg = f"the server received {checksum.name} {found}, not {value}"
                raise Failure(msg, code="BadDigest", transient=True)
        return reply

    def _in_parts(self, source: Source, key: str, reuse: Reuse | None, etag: str) -> None:
        identity = _identity(source, reuse)
        record = self._uploads.resumable(key, identity)
        part = record.part_bytes if record else part_size(source.size, self._part_bytes)
        plan = plan_parts(source.size, part, reuse.ranges if reuse else ())
        resumed: dict[int, SentPart] = {}
        if record is not None:
            try:
                resumed = self._uploads.parts(record, plan)
            except Failure as failure:
                if failure.code not in _UNKNOWN:
                    raise
                if self._uploads.was_completed(record, source.size):
                    return
                record = None  # a new upload begins
        if record is None:
            record = self._uploads.begin(key, identity, part)
        try:
            run = _PartUpload(self, self._api, source, record, (reuse.key, etag) if reuse else None)
            sent = run.parts(plan, resumed, PartSenders(Concurrency(part), self._bandwidth))
            self._uploads.complete(record, sent, source.size)
        except Failure as failure:
            raise self._ended(record, failure, resumed=bool(resumed)) from None
        except Exception:  # of the source: another try would meet it again
            self._drop(record)
            raise
        except BaseException:
            if not self._uploads.survives(record):
                self._drop(record)
            raise

    def _ended(self, record: UploadRecord, failure: Failure, *, resumed: bool) -> Failure:
        """Keep, forget or abort an upload that failed; return the failure to raise."""
        if failure.code == request_errors.NO_UPLOAD:
            self._uploads.forget(record)
            msg = f"{failure} (another process aborted the upload, or it expired)"
            return Failure(msg, code=failure.code, transient=True)
        if failure.code in _LOST and resumed:
            failure = Failure(str(failure), code=failure.code, transient=True)
            self._drop(record)
        elif not (failure.transient and self._uploads.survives(record)):
            self._drop(record)
        return failure

    def _drop(self, record: UploadRecord) -> None:
        """Abort an upload after an error, which is raised; an error of the abort is ignored."""
        try:
            self._uploads.abort(record)
        except Failure:
            return  # the journal, or the server's list, still has it


class _PartUpload:
    """Sends the parts of one upload; its methods are called by the threads of `PartSenders`."""

    def __init__(
        self,
        uploader: Uploader,
        api: Api,
        source: Source,
        record: UploadRecord,
        copied: tuple[str, str] | None,
    ) -> None:
        self._uploader = uploader
        self._api = api
        self._source = source
        self._record = record
        self._copied = copied
        self._checksum = checksum_named(record.checksum)
        self._lock = threading.Lock()
        self._sent: dict[int, SentPart] = {}

    def parts(
        self, plan: Plan, have: dict[int, SentPart], senders: PartSenders
    ) -> Sequence[SentPart]:
        """Send what the server does not have; return all parts in order."""
        self._sent = dict(have)
        numbers = {part: number for number, part in enumerate(plan, 1)}
        missing = [part for part in plan if numbers[part] not in have]

        def do(part: Send | Copy) -> None:
            number = numbers[part]
            sent = self._copy(part, number, senders) if isinstance(part, Copy) else None
            sent = sent or self._send(part, number, senders)
            with self._lock:
                self._sent[number] = sent

        senders.run(missing, do)
        return [self._sent[number] for number in sorted(self._sent)]

    def _send(self, part: Send | Copy, number: int, senders: PartSenders) -> SentPart:
        with self._source.lend(part.offset, part.size) as data:
            value = self._checksum.of(data) if self._checksum else None

            def send() -> Reply:
                began = time.monotonic()
                try:
                    return self._uploader._bytes(  # noqa: SLF001 - the other half of one thing
                        "upload_part",
                        data,
                        self._checksum,
                        value,
                        senders,
                        Key=self._record.key,
                        UploadId=self._record.upload_id,
                        PartNumber=number,
                    )
                except Failure as failure:
                    senders.record_failure(failure, began)
                    raise

            reply = retried(send, senders.rest)
        sent: SentPart = {"PartNumber": number, "ETag": reply.headers["etag"]}
        if self._checksum and self._checksum.header in reply.headers:
            sent[self._checksum.parameter] = value
        return sent

    def _copy(self, part: Copy, number: int, senders: PartSenders) -> SentPart:
        assert self._copied is not None
        from_key, etag = self._copied
        answer = retried(
            lambda: self._api.call(
                "upload_part_copy",
                Key=self._record.key,
                UploadId=self._record.upload_id,
                PartNumber=number,
                CopySource={"Bucket": self._api.bucket, "Key": from_key},
                CopySourceRange=f"bytes={part.offset}-{part.offset + part.size - 1}",
                CopySourceIfMatch=etag,
            ),
            senders.rest,
        )
        result = answer["CopyPartResult"]
        sent: SentPart = {"PartNumber": number, "ETag": result["ETag"]}
        if self._checksum and result.get(self._checksum.parameter):
            sent[self._checksum.parameter] = result[self._checksum.parameter]
        return sent


def _identity(source: Source, reuse: Reuse | None) -> str:
    """Digest of what makes two uploads equal: the bytes, the copied ranges, and the part plan.

    The server identifies a part by number and size: under another plan it would hold other bytes.
    """
    facts = [source.digest, source.size, reuse and [reuse.key, reuse.ranges]]
    facts += [PLAN_VERSION, COPY_BYTES, LEAST_BYTES]
    return xxhash.xxh3_128_hexdigest(json.dumps(facts).encode())
