"""Which files of unfinished publications are in the store: a restart does not send them again.

That is so only while nobody else writes there. So the record belongs to a lease, and passes to the
next one only if that follows at once.
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
from bt_lightning.layout import DOT_DIR
from bt_lightning.localdir.safe_open import open_own
from bt_lightning.localdir.small_files import read_lines, replace_small

if TYPE_CHECKING:
    from pathlib import Path


def uploads_folder(root: Path) -> Path:
    """Where the worker remembers uploads, on the volume of the checkpoints."""
    return root / DOT_DIR / "uploads"


class SentFiles:
    """Key -> digest of the object there, in a file to which lines are added. Any thread's."""

    def __init__(self, root: Path, place: str) -> None:
        """`place` names the part of the store that is meant."""
        name = f"sent-{xxhash.xxh3_128_hexdigest(place.encode())}.jsonl"
        self._file = uploads_folder(root) / name
        self._token, self._digests = _read(self._file)
        self._lock = threading.Lock()

    def begin_lease(self, before: str | None, token: str) -> None:
        """The lease `token` followed the lease `before`: forget what was sent under any other."""
        if token != self._token:
            kept = self._digests if before is not None and before == self._token else {}
            self._token = token
            self._keep(kept)

    def get(self, key: str) -> str | None:
        """The digest of the object at `key`, if it was sent."""
        return self._digests.get(key)

    def sending(self, key: str) -> None:
        """Other bytes are about to be sent to `key`."""
        with self._lock:
            if key in self._digests:
                self._keep({other: d for other, d in self._digests.items() if other != key})

    def add(self, key: str, digest: str) -> None:
        """These bytes are there. Lost with the power at worst: then they are sent again."""
        line = json.dumps([key, digest]) + "\n"
        with self._lock:
            self._digests[key] = digest
            with contextlib.suppress(OSError):
                descriptor = open_own(self._file, os.O_WRONLY | os.O_APPEND)
                with os.fdopen(descriptor, "wb") as stream:
                    stream.write(line.encode("ascii"))

    def under(self, folder: str) -> frozenset[str]:
        """The keys in a folder."""
        return frozenset(key for key in self._digests if key.startswith(f"{folder}/"))

    def drop(self, folder: str) -> None:
        """Forget what is in a folder: it is published, or about to be deleted."""
        with self._lock:
            if gone := self.under(folder):
                self._keep({key: d for key, d in self._digests.items() if key not in gone})

    def _keep(self, digests: dict[str, str]) -> None:
        """Durable: what is forgotten must not come back with a crash.

        On a full disk nothing is remembered: sending may be what saves the bytes that are on it.
        """
        self._digests = digests
        lines = [json.dumps(line) + "\n" for line in (self._token, *digests.items())]
        try:
            replace_small(self._file, "".join(lines).encode("ascii"))
        except OSError:
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)


def _read(file: Path) -> tuple[str | None, dict[str, str]]:
    """Token and digests, as far as they can be read: a line may be torn."""
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
