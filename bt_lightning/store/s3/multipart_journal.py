"""What is being uploaded, on disk: so that a restart goes on with it, or gives it up."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import xxhash

from bt_lightning.file_limits import RECORD
from bt_lightning.localdir.atomic_directory import children
from bt_lightning.localdir.small_files import read_json, replace_small
from bt_lightning.manifest import BLOCK_BYTES
from bt_lightning.store.s3.part_plan import LEAST_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SUFFIX = ".upload.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRecord:
    """One multipart upload."""

    store: str
    """URL of the store, without secrets."""
    key: str
    identity: str
    """Digest of the content and of what is copied: equal ones go on with each other's parts."""
    part_bytes: int
    """Of a part that is sent. Whoever goes on with the upload cuts as it was cut."""
    upload_id: str | None = None
    """None until the server has named it."""
    checksum: str | None = None
    """Name of the checksum that each part carries."""
    etag: str | None = None
    """What the object's ETag will be; known once the upload is about to be completed."""


class MultipartJournal:
    """A directory with one small file for each upload of one writer, atomically written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, store: str, key: str) -> UploadRecord | None:
        """The upload to that key that was begun last, if it has not ended."""
        record = _read(self._file(store, key))
        return record if record and (record.store, record.key) == (store, key) else None

    def all(self, store: str) -> Iterator[UploadRecord]:
        """Every upload to that store."""
        for file in children(self._folder):
            record = _read(file) if file.name.endswith(_SUFFIX) else None
            if record and record.store == store:
                yield record

    def write(self, record: UploadRecord) -> None:
        """Put the record in the place of the one of the same key.

        A disk that refuses is no failure: what is uploaded may be all that can be saved from it.
        """
        file = self._file(record.store, record.key)
        with contextlib.suppress(OSError):
            replace_small(file, json.dumps(asdict(record)).encode("ascii"))

    def remove(self, record: UploadRecord) -> None:
        """Forget it: the upload is complete, or was given up."""
        with contextlib.suppress(OSError):  # nothing knows it any more: the next try finds that out
            self._file(record.store, record.key).unlink(missing_ok=True)

    def _file(self, store: str, key: str) -> Path:
        return self._folder / (xxhash.xxh3_128_hexdigest(f"{store}\n{key}".encode()) + _SUFFIX)


def _read(file: Path) -> UploadRecord | None:
    """The record; None if it is missing or damaged: its upload is found by the server's list."""
    try:
        data: Any = read_json(file, RECORD)
        record = UploadRecord(**data)
    except (OSError, ValueError, TypeError):
        return None
    texts = (record.store, record.key, record.identity)
    others = (record.upload_id, record.checksum, record.etag)
    if not all(isinstance(text, str) for text in texts):
        return None
    if not all(isinstance(text, str | None) for text in others):
        return None
    part: object = record.part_bytes
    cut = isinstance(part, int) and part >= LEAST_BYTES and part % BLOCK_BYTES == 0
    return record if cut else None
