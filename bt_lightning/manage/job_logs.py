"""The logs of a job as commands read them: from a store, of all its nodes, or from a directory.

A log is read as it grows: each call gives what was logged since the last one.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.localdir.event_log import event_of
from bt_lightning.localdir.safe_open import open_regular
from bt_lightning.log_kinds import LOGS, SEGMENT_BYTES, Segment, log_folder, segment_of_name
from bt_lightning.manage.directory_checkpoints import DirectoryCheckpoints
from bt_lightning.manage.job_checkpoints import JoinedCheckpoints, StoreCheckpoints
from bt_lightning.path_layout import DOT_DIR, job_prefix, jobs_prefix, under
from bt_lightning.store.catalog.job_records import read_record
from bt_lightning.store.interface import read_any
from bt_lightning.store.transfer.parallel_reads import in_parallel

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bt_lightning.log_kinds import LogKind
    from bt_lightning.manage.checkpoint_items import JobCheckpoints
    from bt_lightning.store.interface import Store

LEFT_OUT: Final = "left_out"
"""An event that stands for segments which the store has no more; `bytes`: at most so many."""
_READERS: Final = 16
_MOST_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Logged:
    """One event of a node."""

    node_rank: int
    event: dict[str, Any]
    """With `event`, a word, and `at`, seconds of the epoch; anybody may have written the rest."""

    @property
    def at(self) -> float:
        """Seconds of the epoch."""
        return float(self.event["at"])


class LogSource(Protocol):
    """One log of one node."""

    def new(self, most: int | None = None) -> list[Logged]:
        """What was logged since the last call, in its order; at least the last `most` of it.

        Raises:
            StoreError: the store refused.
        """


class StoredLog:
    """A log in a store."""

    def __init__(self, store: Store, project: str, job: str, node_rank: int, kind: LogKind) -> None:
        self._store = store
        self._node_rank = node_rank
        self._folder = log_folder(job_prefix(project, job, node_rank), kind)
        self._sizes: dict[Segment, int] = {}
        """Those that were read, with the size that they had."""
        self._lines: dict[Segment, int] = {}

    def new(self, most: int | None = None) -> list[Logged]:
        """As `LogSource.new`. One listing, and a read of each segment that has grown."""
        found: dict[Segment, int] = {}
        for info in self._store.list(self._folder):
            segment = segment_of_name(info.key.rpartition("/")[2])
            if segment is not None:
                found[segment] = info.size
        grown = [one for one in sorted(found) if self._sizes.get(one) != found[one]]
        logged: list[Logged] = []
        batch = len(grown) if most is None else _READERS
        while grown and (most is None or len(logged) < most):
            grown, last = grown[:-batch], grown[-batch:]
            logged = self._read(last, found) + logged
        for segment in grown:  # nobody asked for those
            self._sizes[segment], self._lines[segment] = found[segment], 0
        return logged

    def _read(self, segments: Sequence[Segment], found: dict[Segment, int]) -> list[Logged]:
        keys = [under(self._folder, segment.name) for segment in segments]
        logged: list[Logged] = []
        read = in_parallel(lambda key: read_any(self._store, key), keys, _READERS)
        for segment, data in zip(segments, read, strict=True):
            lines = (data or b"").splitlines()
            events = [event for line in lines if (event := event_of(line)) is not None]
            had = self._lines.get(segment, 0)
            missing = self._missing(segment, found)
            if missing and events and not had:
                gap = {"event": LEFT_OUT, "at": events[0]["at"], "bytes": missing * SEGMENT_BYTES}
                logged.append(Logged(self._node_rank, gap))
            logged += [Logged(self._node_rank, event) for event in events[had:]]
            self._sizes[segment], self._lines[segment] = found[segment], len(events)
        return logged

    @staticmethod
    def _missing(segment: Segment, found: dict[Segment, int]) -> int:
        """How many segments of the same file are missing before this one."""
        before = [one.number for one in found if one.of_file == segment.of_file and one < segment]
        return segment.number - max(before, default=-1) - 1


class DirectoryLog:
    """A log in a checkpoint directory."""

    def __init__(self, root: Path, kind: LogKind, node_rank: int = 0) -> None:
        self._folder, self._kind = root / DOT_DIR, kind
        self._node_rank = node_rank
        self._read: dict[int, int] = {}
        """Inode -> bytes that were read."""

    def new(self, most: int | None = None) -> list[Logged]:  # noqa: ARG002 - a disk reads fast
        """As `LogSource.new`."""
        logged: list[Logged] = []
        for name in (self._kind.older, self._kind.file):
            try:
                descriptor = open_regular(self._folder / name)
            except (OSError, CheckpointCorruptError):
                continue  # there is none
            try:
                status = os.fstat(descriptor)
                offset = self._read.get(status.st_ino, 0)
                data = os.pread(descriptor, min(status.st_size - offset, _MOST_BYTES), offset)
            finally:
                os.close(descriptor)
            whole = data[: data.rfind(b"\n") + 1]
            self._read[status.st_ino] = offset + len(whole)
            events = (event_of(line) for line in whole.splitlines())
            logged += [Logged(self._node_rank, event) for event in events if event is not None]
        return logged


class JobLog:
    """One log of all nodes of a job, in the order of time. Used by one thread."""

    def __init__(self, sources: Sequence[LogSource]) -> None:
        self._sources = sources

    def new(self, most: int | None = None) -> list[Logged]:
        """As `LogSource.new`: what came since the last call, the last `most` of it."""
        logged = [one for source in self._sources for one in source.new(most)]
        if len(self._sources) > 1:
            logged.sort(key=lambda one: one.at)
        return logged if most is None else logged[len(logged) - min(most, len(logged)) :]


def stored_log(
    store: Store, project: str, job: str, kind: LogKind, node: int | None = None
) -> JobLog:
    """A log of a job in a store, of all its nodes or of one.

    Raises:
        StoreError: the store refused.
    """
    nodes = nodes_of(store, project, job) if node is None else [node]
    return JobLog([StoredLog(store, project, job, rank, kind) for rank in nodes])


def directory_log(root: Path, kind: LogKind) -> JobLog:
    """A log of the job whose checkpoint directory this is."""
    return JobLog([DirectoryLog(root, kind)])


def logged_of(source: JobCheckpoints, kind: LogKind) -> list[Logged]:
    """What a log of a job says, wherever it lies, each event once, in the order of time.

    Raises:
        StoreError: the store refused.
    """
    sources: list[LogSource] = []
    stored = source.store_part if isinstance(source, JoinedCheckpoints) else source
    on_disk = source.directory_part if isinstance(source, JoinedCheckpoints) else source
    if isinstance(on_disk, DirectoryCheckpoints):
        sources.append(DirectoryLog(on_disk.root, kind, on_disk.node_rank))
    if isinstance(stored, StoreCheckpoints):
        store, project, job = stored.store, stored.project, stored.job
        nodes = nodes_of(store, project, job)
        sources += [StoredLog(store, project, job, rank, kind) for rank in nodes]
    found = JobLog(sources).new()
    if len(sources) > 1:
        found = list({(one.node_rank, json.dumps(one.event)): one for one in found}.values())
    return sorted(found, key=lambda one: one.at)


def nodes_of(store: Store, project: str, job: str) -> list[int]:
    """Ranks of the nodes of a job: by its record, else those that have a log in the store.

    Raises:
        StoreError: the store refused.
    """
    try:
        record = read_record(store, job_prefix(project, job, 0))
    except CheckpointCorruptError:
        record = None
    if record is not None and record.group_size >= 1:
        return list(range(record.group_size))
    folders = [log_folder("", kind) for kind in LOGS]
    prefix = jobs_prefix(project, job)
    found = set()
    for info in store.list(prefix):
        node, _, rest = info.key.removeprefix(f"{prefix}/").partition("/")
        word, _, rank = node.partition("-")
        if word == "rank" and rank.isdecimal() and rest.startswith(tuple(folders)):
            found.add(int(rank))
    return sorted(found) or [0]
