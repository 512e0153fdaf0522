"""Files of a checkpoint directory that belong to no checkpoint, on their way to the store.

A file is sent when it has rested: unchanged over `REST_S`. One that never rests, as a log does, is
tried once a minute, and goes if nobody writes to it just while it is read. At the end of a training
process whatever is there counts as rested. What was deleted on the disk stays in the store.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointNotFoundError, StoreError, StorePermanentError
from bt_lightning.layout import DOT_DIR, files_mark, folders_of, under
from bt_lightning.localdir.find_job_files import JobFiles, Stamp, find_job_files
from bt_lightning.localdir.publisher_id import publisher_id_of
from bt_lightning.localdir.uploaded_job_files import UploadedJobFiles
from bt_lightning.store.interface import read_any
from bt_lightning.store.transfer.job_file_source import JobFileSource
from bt_lightning.store.transfer.parallel_reads import in_parallel

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from bt_lightning.glob_patterns import Patterns
    from bt_lightning.store.interface import Store
    from bt_lightning.store.lease import Lease

REST_S: Final = 2.0
RESTLESS_S: Final = 60.0
_RESTLESS_BYTES: Final = 8 * 1024 * 1024
"""A larger file that does not rest is not finished, and no log."""
_LOOK_S: Final = 1.0
_LOOK_SHARE: Final = 20
"""Looking at many files takes at most such a part of the time."""
_ENDING_LOOK_S: Final = 0.2
_SETTLING_S: Final = 3 * REST_S
"""So long the end waits for a file that somebody still writes to."""
_BATCH_FILES: Final = 64
_BATCH_BYTES: Final = 64 * 1024 * 1024
_THREADS: Final = 8
_UNIT_S: Final = 2.0
"""After so long, what else there is to do comes first again."""
_NEVER: Final = float("-inf")


@dataclass(slots=True)
class _Seen:
    """A file that is not in the store as it is."""

    stamp: Stamp
    since: float
    """When it was first seen so."""
    restless: float
    """When it was first seen at all, or last tried while it did not rest."""
    tried: float = _NEVER
    went: float = _NEVER
    """When it was last sent as it was, though it did not rest."""
    refused: str | None = None
    """Why it cannot be in the store as it is."""


class JobFilePublisher:
    """One directory's. One thread calls it; `waiting` and `reason` are read by others."""

    def __init__(
        self,
        root: Path,
        patterns: Patterns,
        place: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`place` names the part of the store that they go to."""
        self._root = root
        self._patterns = patterns
        self._clock = clock
        self._arrived = UploadedJobFiles(root, place)
        self._chosen: dict[str, bool] = {}
        self._seen: dict[str, _Seen] = {}
        self._told: set[str] = set()
        self._begun = False
        self._ending: float | None = None
        self._gone = False
        self.complaints: list[str] = []
        """What cannot be sent, each once, since the reader last emptied it."""
        self.waiting: tuple[str, ...] = ()
        """Paths of files that the store has not, or not as they are."""
        self.reason: str | None = None
        """Why one of them is not there."""
        self.next_look = 0.0
        """When to look again, by the clock."""

    def end(self, *, gone: bool) -> None:
        """What is here is to arrive soon; if the training process is `gone`, as it is."""
        if self._ending is None or (gone and not self._gone):
            self._ending, self._gone, self.next_look = self._clock(), gone, 0.0
            for seen in self._seen.values():
                seen.refused = None  # another try, without another complaint

    def go_on(self) -> None:
        """It did not end, or another training process may come."""
        self._ending, self._gone = None, False

    def forget(self) -> None:
        """Trust nothing that is known of the store."""
        self._begun = False

    @property
    def unsettled(self) -> bool:
        """Whether the end waits for a file that is to be sent, or to rest before."""
        ending = self._ending
        if ending is None:
            return False
        early = self._clock() - ending < _SETTLING_S
        return any(
            seen.refused is None and seen.went < ending and (early or seen.tried < ending)
            for seen in self._seen.values()
        )

    def look(self) -> None:
        """Look at the disk."""
        started = self._clock()
        found = find_job_files(self._root, self._wanted)
        for name, why in found.refused.items():
            self._complain(name, why)
        self._compare(found, self._clock())
        pause = max(_LOOK_S, _LOOK_SHARE * (self._clock() - started))
        if self._ending is not None and self.unsettled:
            pause = _ENDING_LOOK_S
        self.next_look = self._clock() + pause

    @property
    def ready(self) -> bool:
        """Whether a file may be sent now, or it is not known whether the store has what it had."""
        now = self._clock()
        unsure = not self._begun and len(self._arrived) > 0
        return unsure or any(self._may_go(seen, now) for seen in self._seen.values())

    def unsent(self) -> list[str]:
        """Paths of what the store has not, as of the last look."""
        return list(self._seen)

    def begin(self, store: Store, prefix: str, held: dict[str, int]) -> None:
        """Nobody else writes to the store, which has files of these paths and sizes.

        What other directories have sent under the same names is replaced.
        """
        if self._begun or not (self._seen or self._arrived):
            return
        mine, mark = publisher_id_of(self._root).encode(), files_mark(prefix)
        if read_any(store, mark) == mine:
            self._arrived.keep_held(held)
        else:
            self._arrived.keep({})
            store.put(mark, mine)
        self._begun = True
        self.look()

    def send(
        self,
        store: Store,
        prefix: str,
        lease: Lease,
        checkpoints: Collection[str],
        go_on: Callable[[], bool],
    ) -> bool:
        """Send what may go, small files first, for a while; return whether there is more.

        `checkpoints` are the folders of the store that are theirs: nothing is written into those.
        `go_on` is asked between two batches; what it raises passes through.

        Raises:
            StoreError: the store refuses whatever it is sent, or another process writes there.
        """
        until = self._clock() + _UNIT_S
        while batch := self._batch(checkpoints):
            if self._clock() > until or not go_on():
                return True
            lease.confirm()
            results = in_parallel(
                lambda item: _send(store, self._root, prefix, *item), batch, _THREADS
            )
            now, arrived = self._clock(), []
            for (path, stamp), result in zip(batch, results, strict=True):
                seen = self._seen[path]
                rested = self._gone or now - seen.since >= REST_S
                seen.tried = seen.restless = now
                if isinstance(result, CheckpointNotFoundError):
                    seen.since = now  # it is looked at again
                elif result is not None:
                    self._refuse(store, prefix, path, result)
                elif rested:
                    arrived.append((path, stamp))
                    del self._seen[path]
                else:  # not remembered: what was written in the same tick of the clock is missed
                    seen.went = now
            self._arrived.add(arrived)
            self._tell()
        return False

    def _wanted(self, path: str) -> bool:
        """Patterns cost more than a look at a file."""
        if len(self._chosen) > 2 * len(self._seen) + 2 * len(self._arrived) + 1000:
            self._chosen.clear()
        found = self._chosen.get(path)
        if found is None:
            found = self._chosen[path] = self._patterns.choose(path)
        return found

    def _compare(self, found: JobFiles, now: float) -> None:
        for path in self._seen.keys() - found.files.keys():
            del self._seen[path]
        for path, stamp in found.files.items():
            seen = self._seen.get(path)
            if (path, stamp) in self._arrived:
                self._seen.pop(path, None)
            elif seen is None:
                self._seen[path] = _Seen(stamp, now, now)
            elif seen.stamp != stamp:
                seen.stamp, seen.since, seen.refused = stamp, now, None
        self._tell()

    def _tell(self) -> None:
        ending = self._ending if self._ending is not None else float("inf")
        self.waiting = tuple(sorted(p for p, seen in self._seen.items() if seen.went < ending))
        refused = (seen.refused for seen in self._seen.values() if seen.refused)
        self.reason = next(refused, None)

    def _may_go(self, seen: _Seen, now: float) -> bool:
        if seen.refused is not None:
            return False
        if now - seen.since >= REST_S:
            return True
        if self._ending is not None and seen.tried < self._ending:
            return self._gone or now - self._ending >= 2 * REST_S
        return seen.stamp.size <= _RESTLESS_BYTES and now - seen.restless >= RESTLESS_S

    def _batch(self, checkpoints: Collection[str]) -> list[tuple[str, Stamp]]:
        """What goes next: many small files at once, or one large one."""
        now = self._clock()
        ready = sorted(
            (seen.stamp.size, path) for path, seen in self._seen.items() if self._may_go(seen, now)
        )
        batch: list[tuple[str, Stamp]] = []
        total = 0
        for size, path in ready:
            taken = next((name for name in folders_of(path) if name in checkpoints), None)
            if taken is not None:
                why = f"the store has a checkpoint {taken}, and no other file goes into that"
                self._seen[path].refused = why
                self._complain(path, why)
                continue
            if batch and (len(batch) >= _BATCH_FILES or total + size > _BATCH_BYTES):
                break
            batch.append((path, self._seen[path].stamp))
            total += size
        return batch

    def _refuse(self, store: Store, prefix: str, path: str, error: Exception) -> None:
        """One file failed for good; if it is not the file but the store, raise what that says."""
        if isinstance(error, StorePermanentError):
            probe = under(prefix, f"{DOT_DIR}-files-probe")
            store.put(probe, b"probe")
            store.delete([probe])
        self._seen[path].refused = str(error)
        self._complain(path, str(error))

    def _complain(self, name: str, why: str) -> None:
        if name not in self._told:
            self._told.add(name)
            self.complaints.append(f"the file {name} is not in the store: {why}")


def _send(store: Store, root: Path, prefix: str, path: str, stamp: Stamp) -> Exception | None:
    """Send one file; return what only this file failed of, `CheckpointNotFoundError` if it changed.

    Called by several threads. Raises `StoreError` if another try may help.
    """
    key = under(prefix, path)
    try:
        with JobFileSource(root / path, stamp) as source:
            if source.size:
                store.send(source, key)
            else:
                store.put(key, b"")
            source.check()
    except (CheckpointNotFoundError, StorePermanentError) as error:
        return error
    except StoreError:
        raise
    except OSError as error:  # of the disk
        return error
    return None
