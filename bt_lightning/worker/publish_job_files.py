"""Upload of job files: files of a checkpoint directory that belong to no checkpoint.

A file is sent once it is unchanged for `REST_S` seconds. One that keeps changing, as a log does, is
tried once a minute, and sent if nobody writes to it while it is read. At the end of a training
process every file counts as unchanged. A file deleted from the disk stays in the store.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointNotFoundError, StorePermanentError
from bt_lightning.localdir.find_job_files import JobFiles, Stamp, find_job_files
from bt_lightning.localdir.publisher_id import publisher_id_of
from bt_lightning.localdir.uploaded_job_files import UploadedJobFiles
from bt_lightning.path_layout import DOT_DIR, files_mark, folders_of, under
from bt_lightning.store.interface import read_any
from bt_lightning.store.transfer.job_file_source import send_job_file
from bt_lightning.store.transfer.parallel_reads import in_parallel
from bt_lightning.worker.commit_foreign import ForeignCheckpoints

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from bt_lightning.glob_patterns import Patterns
    from bt_lightning.manifest import Manifest
    from bt_lightning.store.interface import Store
    from bt_lightning.store.lease import Lease

REST_S: Final = 2.0
CHANGING_RETRY_S: Final = 60.0
_MAX_CHANGING_BYTES: Final = 8 * 1024 * 1024
"""A larger file that keeps changing is no log: it waits until it is finished."""
_SCAN_S: Final = 1.0
_SCAN_SHARE: Final = 20
"""The pause between two scans, in durations of a scan, if that is longer than `_SCAN_S`."""
_ENDING_SCAN_S: Final = 0.2
_END_WAIT_S: Final = 3 * REST_S
"""Seconds that the end of a training waits for a file that keeps changing."""
_BATCH_FILES: Final = 64
_BATCH_BYTES: Final = 64 * 1024 * 1024
_THREADS: Final = 8
_UNIT_S: Final = 2.0
"""Seconds of sending after which other work goes first."""
_NEVER: Final = float("-inf")


@dataclass(slots=True)
class _Unsent:
    """A file whose present content is not in the store."""

    stamp: Stamp
    unchanged_since: float
    """When it was first seen with this stamp."""
    retried_from: float
    """When it was first seen at all, or last tried while it kept changing."""
    tried_at: float = _NEVER
    sent_changing_at: float = _NEVER
    """When it was last sent although it kept changing."""
    refused: str | None = None
    """Why it cannot be sent as it is."""
    kept_back: bool = False
    """Whether it is, or may be, of another program's checkpoint."""


class JobFilePublisher:
    """Sends the job files of one directory.

    The publisher thread calls its methods; other threads read `waiting` and `reason`.
    """

    def __init__(
        self,
        root: Path,
        patterns: Patterns,
        place: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`place` names the store and prefix that the files go to."""
        self._root = root
        self._patterns = patterns
        self._clock = clock
        self.foreign = ForeignCheckpoints(root, REST_S, clock)
        """Checkpoints of other programs, whose files are no job files."""
        self._uploaded = UploadedJobFiles(root, place)
        self._matched: dict[str, bool] = {}
        self._unsent: dict[str, _Unsent] = {}
        self._reported: set[str] = set()
        self._claimed = False
        self._end_at: float | None = None
        self._scanned_at = _NEVER
        self._trainer_gone = False
        self.complaints: list[str] = []
        """Why files cannot be sent, once for each file, since the reader last emptied it."""
        self.waiting: tuple[str, ...] = ()
        """Paths of files that are not in the store, or in an older state."""
        self.reason: str | None = None
        """Why one of them cannot be sent; None if none failed."""
        self.next_scan = 0.0
        """When to scan again, by the clock."""

    def end(self, *, gone: bool) -> None:
        """Send what is here soon, as the training ends; if that process is `gone`, at once."""
        if self._end_at is None or (gone and not self._trainer_gone):
            self._end_at, self._trainer_gone, self.next_scan = self._clock(), gone, 0.0
            for file in self._unsent.values():
                file.refused = None  # another try, without another complaint

    def cancel_end(self) -> None:
        """Cancel `end`: the training goes on, or another process may take over."""
        self._end_at, self._trainer_gone = None, False

    def forget(self) -> None:
        """Trust nothing known of the store, until the next `begin`."""
        self._claimed = False

    @property
    def unsettled(self) -> bool:
        """Whether the end of the training waits for a file to be sent, or to stop changing."""
        ending = self._end_at
        if ending is None:
            return False
        early = self._clock() - ending < _END_WAIT_S
        if self.foreign.unsettled and (early or self.foreign.ready):
            return True
        return any(
            file.refused is None
            and not file.kept_back
            and file.sent_changing_at < ending
            and (early or file.tried_at < ending)
            for file in self._unsent.values()
        )

    def scan(self) -> None:
        """Scan the disk for job files, and set `next_scan`."""
        started = self._clock()
        found = find_job_files(self._root, self._is_included)
        for name, why in found.refused.items():
            self._report(name, why)
        self._scanned_at = self._clock()
        ending = self._end_at is not None
        kept_back = self.foreign.scan(found, ending=ending, gone=self._trainer_gone)
        self.complaints += self.foreign.complaints
        self.foreign.complaints.clear()
        self._update_unsent(found, kept_back, self._scanned_at)
        pause = max(_SCAN_S, _SCAN_SHARE * (self._clock() - started))
        if self._end_at is not None and self.unsettled:
            pause = _ENDING_SCAN_S
        self.next_scan = self._clock() + pause

    @property
    def ready(self) -> bool:
        """Whether a file may be sent now, or what the store holds must be checked."""
        now = self._clock()
        unsure = not self._claimed and len(self._uploaded) > 0
        return (
            unsure
            or self.foreign.ready
            or any(self._may_send(file, now) for file in self._unsent.values())
        )

    def unsent(self) -> list[str]:
        """Paths of files that the store has not, as of the last scan."""
        return list(self._unsent)

    def begin(self, store: Store, prefix: str, held: dict[str, int]) -> None:
        """Take over the job files in the store; the caller holds its lease.

        `held` maps the paths of the job files in the store to their sizes. What another directory
        has sent under the same names is replaced.
        """
        if self._claimed or not (self._unsent or self._uploaded):
            return
        publisher_id, mark = publisher_id_of(self._root).encode(), files_mark(prefix)
        if read_any(store, mark) == publisher_id:
            self._uploaded.keep_held(held)
        else:
            self._uploaded.keep({})
            store.put(mark, publisher_id)
        self._claimed = True
        self.scan()

    def send(
        self,
        store: Store,
        prefix: str,
        lease: Lease,
        checkpoints: Collection[str],
        go_on: Callable[[], bool],
    ) -> bool:
        """Send what may be sent, small files first, for 2 s; return whether there is more.

        `checkpoints` are the folders of checkpoints in the store: nothing is written into those.
        `go_on` is called between two batches: False ends the sending, an error passes through.

        Raises:
            StoreError: the store refuses all writes, or another process writes there.
        """
        until = self._clock() + _UNIT_S
        while batch := self._batch(checkpoints):
            if self._clock() > until or not go_on():
                return True
            lease.confirm()
            results = in_parallel(
                lambda item: send_job_file(store, self._root, prefix, *item), batch, _THREADS
            )
            now, uploaded = self._clock(), []
            for (path, _), result in zip(batch, results, strict=True):
                file = self._unsent[path]
                unchanged = self._trainer_gone or now - file.unchanged_since >= REST_S
                file.tried_at = file.retried_from = now
                if isinstance(result, CheckpointNotFoundError):
                    file.unchanged_since = now  # the next scan sees its new stamp
                elif isinstance(result, Exception):
                    self._refuse(store, prefix, path, result)
                elif unchanged:
                    uploaded.append((path, result))
                    del self._unsent[path]
                else:  # not remembered: a write in the same tick of the clock would be missed
                    file.sent_changing_at = now
            self._uploaded.add(uploaded)
            self._update_waiting()
        return False

    def commit_foreign(
        self, newest: Callable[[str], Manifest | None], check: Callable[[], None]
    ) -> None:
        """Commit what other programs wrote; see `ForeignCheckpoints.commit`."""
        try:
            self.foreign.commit(newest, check)
        finally:
            self._update_waiting()

    def _is_included(self, path: str) -> bool:
        """Whether the patterns include `path`; cached, as matching costs more than a stat."""
        if len(self._matched) > 2 * len(self._unsent) + 2 * len(self._uploaded) + 1000:
            self._matched.clear()
        found = self._matched.get(path)
        if found is None:
            found = self._matched[path] = self._patterns.choose(path)
        return found

    def _update_unsent(self, found: JobFiles, kept_back: Collection[str], now: float) -> None:
        for path in self._unsent.keys() - found.files.keys():
            del self._unsent[path]
        for path, stamp in found.files.items():
            file = self._unsent.get(path)
            if (path, stamp) in self._uploaded:
                self._unsent.pop(path, None)
            elif file is None:
                self._unsent[path] = _Unsent(stamp, now, now)
            elif file.stamp != stamp:
                file.stamp, file.unchanged_since, file.refused = stamp, now, None
        for path, file in self._unsent.items():
            file.kept_back = path in kept_back
        self._update_waiting()

    def _update_waiting(self) -> None:
        ending = self._end_at if self._end_at is not None else float("inf")
        files = (
            path
            for path, file in self._unsent.items()
            if file.sent_changing_at < ending and not file.kept_back
        )
        self.waiting = tuple(sorted([*self.foreign.unsettled, *files]))
        refused = (file.refused for file in self._unsent.values() if file.refused)
        changing = (
            f"{path} changes while it is read"
            for path, file in self._unsent.items()
            if file.tried_at >= ending and file.sent_changing_at < ending
        )
        self.reason = next(refused, None) or next(changing, None)

    def _may_send(self, file: _Unsent, now: float) -> bool:
        if file.refused is not None or file.kept_back:
            return False
        if now - file.unchanged_since >= REST_S:
            return True
        if self._end_at is not None and self._is_due_at_end(file, now - self._end_at):
            return True
        return (
            file.stamp.size <= _MAX_CHANGING_BYTES and now - file.retried_from >= CHANGING_RETRY_S
        )

    def _is_due_at_end(self, file: _Unsent, since_s: float) -> bool:
        """Whether to try a file that changes, `since_s` after the training ended: at each scan."""
        ending = self._end_at or 0.0
        waits = file.sent_changing_at < ending and file.tried_at < self._scanned_at
        return waits and (
            (self._trainer_gone or since_s >= 2 * REST_S)
            and (file.tried_at < ending or since_s < _END_WAIT_S)
        )

    def _batch(self, checkpoints: Collection[str]) -> list[tuple[str, Stamp | None]]:
        """The next files to send: many small ones, or one large one.

        One that had rested has its stamp; one that may change has None: it is sent as it is then.
        """
        now = self._clock()
        ready = sorted(
            (file.stamp.size, path)
            for path, file in self._unsent.items()
            if self._may_send(file, now)
        )
        batch: list[tuple[str, Stamp | None]] = []
        total = 0
        for size, path in ready:
            taken = next((name for name in folders_of(path) if name in checkpoints), None)
            if taken is not None:
                why = f"the store has a checkpoint {taken}, and no other file goes into that"
                self._unsent[path].refused = why
                self._report(path, why)
                continue
            if batch and (len(batch) >= _BATCH_FILES or total + size > _BATCH_BYTES):
                break
            file = self._unsent[path]
            batch.append((path, file.stamp if now - file.unchanged_since >= REST_S else None))
            total += size
        return batch

    def _refuse(self, store: Store, prefix: str, path: str, error: Exception) -> None:
        """Mark a file as refused; raise the store's error if the store refuses all writes."""
        if isinstance(error, StorePermanentError):
            probe = under(prefix, f"{DOT_DIR}-files-probe")
            store.put(probe, b"probe")
            store.delete([probe])
        self._unsent[path].refused = str(error)
        self._report(path, str(error))

    def _report(self, name: str, why: str) -> None:
        if name not in self._reported:
            self._reported.add(name)
            self.complaints.append(f"the file {name} is not in the store: {why}")
