"""Create, list, complete and abort the multipart uploads of one store; none is forgotten."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.store.s3 import request_errors
from bt_lightning.store.s3.checksums import checksum_named
from bt_lightning.store.s3.multipart_journal import UploadRecord
from bt_lightning.store.s3.operations import retried
from bt_lightning.store.s3.request_errors import Failure

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from bt_lightning.store.s3.checksums import ChecksumChoice
    from bt_lightning.store.s3.multipart_journal import MultipartJournal
    from bt_lightning.store.s3.operations import Api
    from bt_lightning.store.s3.part_plan import Part

log = logging.getLogger(__name__)

SentPart = dict[str, Any]
"""A part that the server has, as `CompleteMultipartUpload` names it."""

_MD5_CHARS: Final = 32


class MultipartUploads:
    """Creates, completes and aborts uploads, and keeps the journal. Raises `Failure`."""

    def __init__(
        self, api: Api, store: str, journal: MultipartJournal | None, choice: ChecksumChoice
    ) -> None:
        self._api = api
        self._store = store
        self._journal = journal
        self._choice = choice

    def survives(self, record: UploadRecord) -> bool:
        """Whether the journal has this upload, so that a later try can resume it."""
        known = self._journal.find(self._store, record.key) if self._journal else None
        return known is not None and known.upload_id == record.upload_id

    def begin(self, key: str, identity: str, part_bytes: int) -> UploadRecord:
        """Create an upload in parts of `part_bytes`; the journal has it before the server does."""
        self.end(key)
        record = UploadRecord(store=self._store, key=key, identity=identity, part_bytes=part_bytes)
        self._write(record)
        asked = []

        def create() -> SentPart:
            asked.append(checksum)
            algorithm = checksum.name if checksum else None
            answer = self._api.call("create_multipart_upload", Key=key, ChecksumAlgorithm=algorithm)
            if not answer.get("UploadId"):
                msg = "the answer names no upload: no S3 server answers so"
                raise Failure(msg, transient=True)
            return answer

        for checksum in self._choice.candidates():
            try:
                answer = retried(create)
            except Failure as failure:
                if checksum is None or failure.code not in request_errors.UNKNOWN_TO_SERVER:
                    if not failure.transient:
                        self._forget(record)  # else an upload may exist: the answer was lost
                    raise
            else:
                break
        self._choice.settle(checksum)
        upload_id = answer["UploadId"]
        name = checksum.name if checksum else None
        record = dataclasses.replace(record, upload_id=upload_id, checksum=name)
        self._write(record)
        if asked.count(checksum) > 1 or answer["ResponseMetadata"].get("RetryAttempts"):
            self._abort_all(key, keep=upload_id)  # the answer to an earlier try was lost
        return record

    def resumable(self, key: str, identity: str) -> UploadRecord | None:
        """The unfinished upload of the same content to `key`; None if there is none."""
        record = self._journal.find(self._store, key) if self._journal else None
        return record if record and record.upload_id and record.identity == identity else None

    def parts(self, record: UploadRecord, planned: Sequence[Part]) -> dict[int, SentPart]:
        """The parts of `planned` that the server has, by part number from 1.

        Raises `Failure` with the code `NoSuchUpload` if the server does not know the upload.
        """
        found: dict[int, SentPart] = {}
        checksum = checksum_named(record.checksum)
        marker: dict[str, Any] = {}
        while True:
            asked = {"Key": record.key, "UploadId": record.upload_id, **marker}
            answer = retried(functools.partial(self._api.call, "list_parts", **asked))
            for part in answer.get("Parts", ()):
                number = part["PartNumber"]
                if number <= len(planned) and part["Size"] == planned[number - 1].size:
                    found[number] = {"PartNumber": number, "ETag": part["ETag"]}
                    if checksum and part.get(checksum.parameter):
                        found[number][checksum.parameter] = part[checksum.parameter]
            before, marker = marker, {"PartNumberMarker": answer.get("NextPartNumberMarker")}
            if not answer.get("IsTruncated") or marker == before:
                return found  # parts that a server does not list are sent again

    def complete(self, record: UploadRecord, sent: Sequence[SentPart], size: int) -> None:
        """Complete the upload. An earlier try that succeeded unnoticed is recognised."""
        etag = etag_of([str(part["ETag"]) for part in sent])
        self._write(dataclasses.replace(record, etag=etag))
        checksum = checksum_named(record.checksum)
        if checksum and not all(checksum.parameter in part for part in sent):
            names = ("PartNumber", "ETag")
            sent = [{name: part[name] for name in names} for part in sent]
        try:
            retried(
                lambda: self._api.call(
                    "complete_multipart_upload",
                    Key=record.key,
                    UploadId=record.upload_id,
                    MultipartUpload={"Parts": list(sent)},
                )
            )
        except Failure as failure:
            if not (failure.transient or failure.code == request_errors.NO_UPLOAD):
                raise
            try:
                done = self.is_there(record.key, size, etag)
            except Failure:
                raise failure from None  # the first failure says more than that of the check
            if not done:
                raise
        self._forget(record)

    def was_completed(self, record: UploadRecord, size: int) -> bool:
        """Whether an upload that the server no longer knows was completed."""
        if not self.is_there(record.key, size, record.etag):
            return False
        self._forget(record)
        return True

    def is_there(self, key: str, size: int, etag: str | None) -> bool:
        """Whether the object has this size and ETag; False if the ETag is unknown."""
        answer = self.head(key) if etag else None
        if answer is None:
            return False
        return bool(answer["ContentLength"] == size and str(answer["ETag"]).strip('"') == etag)

    def head(self, key: str) -> dict[str, Any] | None:
        """The metadata of an object; None if there is no object."""
        try:
            return retried(lambda: self._api.call("head_object", Key=key))
        except Failure as failure:
            if failure.code in request_errors.MISSING:
                return None
            raise

    def end(self, key: str) -> None:
        """Abort the journal's upload to `key`, if there is one.

        A user who may not abort must still be able to send: a refusal is logged. Raises `Failure`
        if another try may succeed.
        """
        record = self._journal.find(self._store, key) if self._journal else None
        if record is None:
            return
        try:
            self.abort(record)
        except Failure as failure:
            if failure.transient:
                raise
            log.warning("parts are left in the store: key=%s answer=%s", key, failure.code)

    def abort(self, record: UploadRecord) -> None:
        """Abort the upload; on failure the journal keeps it."""
        if record.upload_id is None:
            self._abort_all(record.key)
        else:
            self._abort(record.key, record.upload_id)
        self._forget(record)

    def forget(self, record: UploadRecord) -> None:
        """Remove an upload that the server does not know from the journal."""
        self._forget(record)

    def abandon(self, folder: str, keep: Collection[str]) -> None:
        """Abort every upload to a key that begins with `folder`, except keys in `keep`."""
        for record in self._journal.all(self._store) if self._journal else ():
            if record.key.startswith(folder) and record.key not in keep:
                self.abort(record)
        for key, upload_id in self._listed(folder):
            if key.startswith(folder) and key not in keep:
                self._abort(key, upload_id)

    def _abort_all(self, key: str, keep: str = "") -> None:
        """Abort every upload to `key` that the server lists, except the upload `keep`."""
        for listed_key, upload_id in self._listed(key):
            if listed_key == key and upload_id != keep:
                self._abort(key, upload_id)

    def _abort(self, key: str, upload_id: str) -> None:
        try:
            retried(lambda: self._api.call("abort_multipart_upload", Key=key, UploadId=upload_id))
        except Failure as failure:
            if failure.code not in request_errors.MISSING | {request_errors.NO_UPLOAD}:
                raise

    def _listed(self, prefix: str) -> Iterator[tuple[str, str]]:
        marker: dict[str, Any] = {}
        while True:
            try:
                answer = retried(
                    functools.partial(
                        self._api.call, "list_multipart_uploads", Prefix=prefix, **marker
                    )
                )
            except Failure as failure:
                if failure.code in request_errors.UNLISTED:
                    return  # this server does not list uploads: the journal has to do
                raise
            for upload in answer.get("Uploads", ()):
                yield upload["Key"], upload["UploadId"]
            before = marker
            marker = {
                "KeyMarker": answer.get("NextKeyMarker"),
                "UploadIdMarker": answer.get("NextUploadIdMarker"),
            }
            if not answer.get("IsTruncated") or marker == before:
                return

    def _write(self, record: UploadRecord) -> None:
        if self._journal is not None:
            self._journal.write(record)

    def _forget(self, record: UploadRecord) -> None:
        if self._journal is not None:
            self._journal.remove(record)


def etag_of(parts: Sequence[str]) -> str | None:
    """The ETag of an object of these parts: the MD5 of their MD5s; None if they are no MD5s."""
    digests = [part.strip('"') for part in parts]
    if any(len(digest) != _MD5_CHARS for digest in digests):
        return None
    try:
        joined = b"".join(bytes.fromhex(digest) for digest in digests)
    except ValueError:
        return None
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(parts)}"
