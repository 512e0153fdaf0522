"""The on-disk journal of multipart uploads: a restart resumes them or aborts them."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import xxhash

from bt_lightning.file_entries import BLOCK_BYTES
from bt_lightning.file_limits import RECORD
from bt_lightning.localdir.atomic_directory import children
from bt_lightning.localdir.small_files import read_json, replace_small
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
    """Digest of the content, the copied ranges and the part plan; a resumed upload has the same."""
    part_bytes: int
    """Size of the parts that are sent. A resumed upload must use the same size."""
    upload_id: str | None = None
    """None until the server has created the upload."""
    checksum: str | None = None
    """Name of the checksum algorithm of the parts; None for none."""
    etag: str | None = None
    """The object's expected ETag; set before the upload is completed."""


class MultipartJournal:
    """A directory of one process with one small, atomically written file per upload."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, store: str, key: str) -> UploadRecord | None:
        """The unfinished upload to `key`; None if there is none."""
        record = _read(self._file(store, key))
        return record if record and (record.store, record.key) == (store, key) else None

    def all(self, store: str) -> Iterator[UploadRecord]:
        """Every unfinished upload to `store`."""
        for file in children(self._folder):
            record = _read(file) if file.name.endswith(_SUFFIX) else None
            if record and record.store == store:
                yield record

    def write(self, record: UploadRecord) -> None:
        """Write the record, in place of the one of the same key.

        An error of the disk is ignored: the upload may be what saves the checkpoint from that disk.
        """
        file = self._file(record.store, record.key)
        with contextlib.suppress(OSError):
            replace_small(file, json.dumps(asdict(record)).encode("ascii"))

    def remove(self, record: UploadRecord) -> None:
        """Delete the record: the upload was completed or aborted."""
        with contextlib.suppress(OSError):  # the next try finds out that the upload is gone
            self._file(record.store, record.key).unlink(missing_ok=True)

    def _file(self, store: str, key: str) -> Path:
        return self._folder / (xxhash.xxh3_128_hexdigest(f"{store}\n{key}".encode()) + _SUFFIX)


def _read(file: Path) -> UploadRecord | None:
    """The record; None if missing or damaged: then the upload is found in the server's list."""
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
