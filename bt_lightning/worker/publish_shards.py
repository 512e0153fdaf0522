"""Publishes a sharded checkpoint of a directory that ranks share: each rank's worker sends its own.

Rank 0's worker claims a folder of the store, sends the files that are its own, and those that no
other worker sends; then it puts the manifest. The others send the files that they wrote, once they
see the claim. Who is slow or gone is not waited for: rank 0's worker sends what is missing.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointNotFoundError,
    StoreError,
    StoreTransientError,
)
from bt_lightning.localdir.list_and_verify_checkpoints import check_sizes, is_unchanged
from bt_lightning.path_layout import rank_of_shard
from bt_lightning.store.retry import backoff
from bt_lightning.store.transfer.file_source import FileSource
from bt_lightning.store.transfer.store_claims import publication_of
from bt_lightning.store.transfer.upload_progress_source import MeteredSource
from bt_lightning.worker.sending_beat import SendingBeat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.localdir.list_and_verify_checkpoints import LocalCheckpoint
    from bt_lightning.manifest import Manifest
    from bt_lightning.store.transfer.file_source import DescribedSource
    from bt_lightning.store.transfer.publish import Base
    from bt_lightning.store.transfer.store_claims import Claim
    from bt_lightning.store.transfer.store_parts import PartsInStore

_POLL_S: Final = 0.2
_SILENT_S: Final = 15.0
"""Seconds without a sign of any other worker, after which rank 0's sends what is missing."""
_CLOSE_S: Final = 2.0
"""Longest wait for a thread that the store holds up."""
_OPEN: Final = 8
"""Number of the newest checkpoints whose claims a worker looks for."""


@dataclass(frozen=True)
class ShardPublication:
    """One publication, by rank 0's worker; on the publisher's thread, with the lease."""

    parts: PartsInStore
    found: LocalCheckpoint
    base: Base | None
    check: Callable[[], None]
    """Called before each file; what it raises ends the publication, which can resume."""
    on_bytes: Callable[[int], None]
    helped: bool
    """Whether workers of other ranks send too."""

    def run(self) -> str:
        """Publish it; return its folder in the store.

        Raises:
            CheckpointNotFoundError: it was replaced or deleted meanwhile.
            CheckpointCorruptError: it is damaged.
            StoreError: the store refused.
        """
        path, manifest = self.found.path, self.found.manifest
        check_sizes(path, manifest)
        after = manifest.generation - 1
        claim = self.parts.claim(publication_of(manifest), manifest.checkpoint_id, after)
        try:
            if self.helped:
                self._send(claim, [one for one in manifest.files if not rank_of_shard(one.path)])
                self._await_others(claim)
            self._send(claim, manifest.files)
        except OSError as error:
            if isinstance(error, StoreError) or is_unchanged(path, manifest):
                raise
            raise self._replaced() from error
        if not is_unchanged(path, manifest):
            raise self._replaced()
        try:
            self.parts.commit(claim, manifest)
        except CheckpointCorruptError as error:  # in the store, not on the disk: to be sent again
            raise StoreTransientError(str(error)) from error
        return claim.folder

    def _send(self, claim: Claim, entries: Sequence[FileEntry]) -> None:
        @contextlib.contextmanager
        def source_of(entry: FileEntry) -> Iterator[DescribedSource]:
            with FileSource(self.found.content / entry.path, entry) as source:
                yield MeteredSource(source, self.on_bytes)

        self.parts.send(claim, entries, source_of, base=self.base, check=self.check)

    def _await_others(self, claim: Claim) -> None:
        """Wait until all others have sent their files, or nothing comes of them any more."""
        ranks = {rank_of_shard(entry.path) for entry in self.found.manifest.files} - {None, 0}
        seen: tuple[frozenset[int], frozenset[str]] = frozenset(), frozenset()
        since = time.monotonic()
        while not ranks <= seen[0] and time.monotonic() - since < _SILENT_S:
            self.check()
            found = self.parts.look(claim.save, known=seen[0])
            now = seen[0].union(found.records), found.beats
            if now != seen:
                seen, since = now, time.monotonic()
            else:
                time.sleep(_POLL_S)

    def _replaced(self) -> CheckpointNotFoundError:
        return CheckpointNotFoundError(
            f"{self.found.path} was replaced while it was being published"
        )


class ShardHelper:
    """The thread of another rank's worker that sends the files that its rank wrote."""

    def __init__(self, rank: int, parts: Callable[[], PartsInStore]) -> None:
        self._rank = rank
        self._parts = parts
        self._open: dict[Path, Manifest] = {}
        """By its directory, what is committed and not sent; the oldest first."""
        self._base: Base | None = None
        """The last checkpoint that was sent: what it has need not be sent again."""
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def close(self) -> None:
        """Send nothing more; waits a while for the file that is under way."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_CLOSE_S)

    def committed(self, manifest: Manifest, path: Path) -> None:
        """A checkpoint has its name: send what is this rank's, once it is claimed."""
        with self._changed:
            self._open.pop(path, None)
            self._open[path] = manifest
            while len(self._open) > _OPEN:
                del self._open[next(iter(self._open))]
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, daemon=True, name="bt_lightning shards"
                )
                self._thread.start()

    def _run(self) -> None:
        failures = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._open or self._closed)
                if self._closed:
                    return
                each = list(self._open.items())
            try:
                for path, manifest in reversed(each):
                    if self._send(path, manifest):
                        with self._changed:
                            if self._open.get(path) is manifest:
                                del self._open[path]
                failures = 0
            except StoreError:
                failures += 1
            with self._changed:
                wait_s = backoff(failures, 1.0) if failures else _POLL_S
                self._changed.wait_for(lambda: self._closed, wait_s)

    def _send(self, path: Path, manifest: Manifest) -> bool:
        """Send the files if the checkpoint is claimed; whether nothing is left to do.

        Raises:
            StoreError: the store refused.
        """
        parts = self._parts()
        if not parts.distant or not is_unchanged(path, manifest):
            return True
        save = publication_of(manifest)
        beat = SendingBeat(parts, save, self._rank)

        @contextlib.contextmanager
        def source_of(entry: FileEntry) -> Iterator[DescribedSource]:
            with FileSource(path / entry.path, entry) as source:
                yield MeteredSource(source, beat.sent)

        own = [entry for entry in manifest.files if rank_of_shard(entry.path) == self._rank]
        try:
            claim = parts.find_claim(save)
            if claim is None:
                return False
            parts.send(claim, own, source_of, base=self._base)
            parts.put_record(save, self._rank, b"{}\n")
            self._base = parts.base(claim, manifest)
        except StoreError:
            raise
        except (CheckpointError, OSError):
            pass  # it is deleted, damaged or ended: rank 0's worker sees which
        return True
