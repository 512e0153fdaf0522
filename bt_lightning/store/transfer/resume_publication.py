"""Record which files of unfinished publications are in the store: a restart does not resend them.

The record is right only while no other process writes to the store's prefix. So it belongs to a
lease, and passes to the next lease only if no other one came in between.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from typing import TYPE_CHECKING

import xxhash

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_limits import LINE, parse_json
from bt_lightning.localdir.safe_open import open_own
from bt_lightning.localdir.small_files import read_lines, replace_small
from bt_lightning.path_layout import DOT_DIR

if TYPE_CHECKING:
    from pathlib import Path


def uploads_folder(root: Path) -> Path:
    """The folder of the worker's records of uploads, in the checkpoint directory."""
    return root / DOT_DIR / "uploads"


class SentFiles:
    """Key -> digest of the object in the store, in an append-only file. Used by any thread."""

    def __init__(self, root: Path, prefix_url: str) -> None:
        """`root` is the checkpoint directory, `prefix_url` the store and prefix."""
        name = f"sent-{xxhash.xxh3_128_hexdigest(prefix_url.encode())}.jsonl"
        self._file = uploads_folder(root) / name
        self._token, self._digests = _read(self._file)
        self._lock = threading.Lock()

    def begin_lease(self, before: str | None, token: str) -> None:
        """The lease `token` followed the lease `before`: forget files sent under other leases."""
        if token != self._token:
            kept = self._digests if before is not None and before == self._token else {}
            self._token = token
            self._keep(kept)

    def get(self, key: str) -> str | None:
        """The digest of the object at `key`; None if it was not sent."""
        return self._digests.get(key)

    def sending(self, key: str) -> None:
        """Forget `key`: other bytes are about to be sent to it."""
        with self._lock:
            if key in self._digests:
                self._keep({other: d for other, d in self._digests.items() if other != key})

    def add(self, key: str, digest: str) -> None:
        """Record that `key` holds these bytes; not fsynced: a lost line means sending again."""
        line = json.dumps([key, digest]) + "\n"
        with self._lock:
            self._digests[key] = digest
            with contextlib.suppress(OSError):
                descriptor = open_own(self._file, os.O_WRONLY | os.O_APPEND)
                with os.fdopen(descriptor, "wb") as stream:
                    stream.write(line.encode("ascii"))

    def under(self, folder: str) -> frozenset[str]:
        """The recorded keys below a folder."""
        return frozenset(key for key in self._digests if key.startswith(f"{folder}/"))

    def drop(self, folder: str) -> None:
        """Forget the files in a folder, which is published, or about to be deleted."""
        with self._lock:
            if gone := self.under(folder):
                self._keep({key: d for key, d in self._digests.items() if key not in gone})

    def _keep(self, digests: dict[str, str]) -> None:
        """Replace the record, durably: a forgotten entry must not come back after a crash.

        On a full disk the record is deleted, and the upload goes on.
        """
        self._digests = digests
        lines = [json.dumps(line) + "\n" for line in (self._token, *digests.items())]
        try:
            replace_small(self._file, "".join(lines).encode("ascii"))
        except OSError:
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)


def _read(file: Path) -> tuple[str | None, dict[str, str]]:
    """Token and digests; torn lines are left out."""
    try:
        first, *lines = [_parsed(line) for line in read_lines(file)] or [None]
    except (OSError, CheckpointCorruptError):
        return None, {}  # everything is sent again
    pairs = [line for line in lines if isinstance(line, list) and len(line) == 2]  # noqa: PLR2004
    found = {key: digest for key, digest in pairs if isinstance(key, str)}
    return (first, found) if isinstance(first, str) else (None, {})


def _parsed(line: bytes) -> object:
    try:
        return parse_json(line, LINE)
    except CheckpointCorruptError:
        return None
