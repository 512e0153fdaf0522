"""Gathers the parts of all ranks in one directory that all of them see, and commits the whole.

A gather is a folder named by its save. Each rank joins it by a lock file, writes its files, then
its record. One file, `outcome.json`, says what came of it: only one process can create it. If that
is a manifest, the files get it and then the checkpoint's name by one rename; whoever finds that not
done does it. So a process may be killed at any instruction: the outcome is that of all, or none
yet. Renames of gathers happen one after the other, so generations of an id count on.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, Final

from bt_lightning import file_limits
from bt_lightning.errors import CheckpointCorruptError, CheckpointError
from bt_lightning.localdir.atomic_directory import (
    children,
    delete_directory,
    discard,
    gathers,
    publish_directory,
)
from bt_lightning.localdir.file_locks import folder_locked
from bt_lightning.localdir.fsync import make_directories, open_directory
from bt_lightning.localdir.gather_checks import (
    digest_of_checkpoint,
    manifest_of_gather,
    share_a_directory,
)
from bt_lightning.localdir.gather_locks import (
    host_of_lock,
    is_left,
    join_gather,
    rank_of_lock,
)
from bt_lightning.localdir.list_and_verify_checkpoints import check_sizes
from bt_lightning.localdir.rename_noreplace import write_new
from bt_lightning.localdir.small_files import read_small_file
from bt_lightning.path_layout import (
    MANIFEST,
    check_checkpoint_id,
    part_file,
    rank_of_part_record,
)
from bt_lightning.sharding.gather_verdict import GatherVerdict
from bt_lightning.sharding.save_part import PartRecord, SaveKey

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from bt_lightning.manifest import Manifest
    from bt_lightning.sharding.save_part import SavePart

_FILES: Final = "files"
_OUTCOME: Final = "outcome.json"
_DONE: Final = "done"
_RETIRED: Final = "retired"
_NAME: Final = re.compile(r"([0-9a-f]{32})-([1-9][0-9]{0,17})", re.ASCII)
_KEPT: Final = 8
"""Number of saves whose outcome stays readable, for a worker that is started again."""


class GatherDirectory:
    """The gathers of one checkpoint directory; implements `worker.gather_place.GatherPlace`.

    `begin` and `put` may be called by another thread than the other methods.
    """

    streams = False

    def __init__(self, root: Path, rank: int) -> None:
        """`rank`: of the training process; -1 for one that adds no part."""
        self._root = root
        self._rank = rank
        self._locks: dict[SaveKey, int] = {}
        self._records: dict[SaveKey, dict[int, PartRecord]] = {}
        self._outcomes: dict[SaveKey, GatherVerdict] = {}

    def home(self, key: SaveKey) -> Path:
        """The folder of a gather."""
        return gathers(self._root) / key.folder

    def begin(self, part: SavePart) -> Path:
        """Join the gather of a save; return the folder that this rank writes its files to.

        Raises:
            OSError: the disk refused.
        """
        home = self.home(part.key)
        make_directories(home / _FILES)
        if part.key not in self._locks:
            self._locks[part.key] = join_gather(home, part.rank)
        return home / _FILES

    def put(self, record: PartRecord) -> None:
        """Write the record of this rank's part, durably; one that is there stays.

        Raises:
            OSError: the disk refused.
        """
        with open_directory(self.home(record.part.key)) as folder:
            name = part_file(record.part.rank)
            with contextlib.suppress(FileExistsError):
                write_new(folder, name, record.to_bytes())

    def records(self, key: SaveKey) -> Mapping[int, PartRecord]:
        """The records that are there, by rank.

        Raises:
            CheckpointCorruptError: one is damaged.
            OSError: the disk refused.
        """
        known = self._records.setdefault(key, {})
        for rank, path in _numbered(self.home(key), rank_of_part_record).items():
            if rank not in known:
                with contextlib.suppress(FileNotFoundError):  # it was committed just now
                    data = read_small_file(path, file_limits.PART)
                    known[rank] = PartRecord.from_bytes(data, str(path))
        return dict(known)

    def hosts(self, key: SaveKey) -> Mapping[int, str]:
        """The host of each rank that has joined."""
        found = {}
        for rank, path in _numbered(self.home(key), rank_of_lock).items():
            with contextlib.suppress(OSError):
                found[rank] = host_of_lock(path)
        return found

    def outcome(self, key: SaveKey) -> GatherVerdict | None:
        """The verdict, once it is in effect: nothing is committed, or all is under its name.

        Raises:
            CheckpointCorruptError: it is damaged.
            OSError: the disk refused.
        """
        verdict = self._decided(key)
        if verdict is None or verdict.manifest is None or self._has(key, _DONE):
            return verdict
        return None

    def commit(self, key: SaveKey, records: Mapping[int, PartRecord]) -> GatherVerdict:
        """Commit a whole gather, or finish its commit; return the verdict that counts.

        Raises:
            CheckpointExistsError: the checkpoint would lie inside another one.
            InvalidSettingError: its place is on another volume.
            CheckpointCorruptError: a file is not there.
            OSError: the disk refused.
        """
        with folder_locked(gathers(self._root)):
            verdict = self._decided(key)
            if verdict is None:
                head = records[0].head
                assert head is not None
                self._finish_earlier(key, head.checkpoint_id)
                manifest = manifest_of_gather(self._root, self.home(key) / _FILES, records)
                verdict = self._decide(key, GatherVerdict(manifest=manifest))
            elif verdict.manifest is not None:
                self._finish_earlier(key, verdict.manifest.checkpoint_id)
            self._finish(key, verdict)
        return verdict

    def give_up(self, key: SaveKey, verdict: GatherVerdict) -> GatherVerdict:
        """Decide that nothing is committed, or finish the commit; return the verdict that counts.

        Raises:
            OSError: the disk refused.
        """
        counts = self._decide(key, verdict)
        if counts.manifest is not None:
            return self.commit(key, {})
        self._finish(key, counts)
        return counts

    def leader_gone(self, key: SaveKey) -> bool:
        """Whether rank 0's worker joined and is dead."""
        return is_left(self.home(key) / "rank-00000")

    def writing(self, key: SaveKey) -> bool:
        """Whether a living worker has joined that has no record yet."""
        records = _numbered(self.home(key), rank_of_part_record)
        joined = _numbered(self.home(key), rank_of_lock)
        return any(not is_left(path) for rank, path in joined.items() if rank not in records)

    def overdue(self, key: SaveKey, waited_s: float, limit_s: float) -> bool:  # noqa: ARG002
        """Whether the parts had enough time."""
        return waited_s > limit_s

    def end(self, key: SaveKey) -> None:
        """Leave a gather. Rank 0 deletes those of long ago whose outcome is carried out."""
        with contextlib.suppress(CheckpointError, OSError):  # it goes with the gather
            self.discard_late(key)
        self.leave(key)
        if self._rank == 0:
            for earlier in self._earlier(key):
                if earlier.number <= key.number - _KEPT and self._has(earlier, _DONE):
                    self.delete(earlier)

    def discard_late(self, key: SaveKey) -> None:
        """Delete files that were written behind the outcome, or that a killed process left then.

        Raises:
            CheckpointCorruptError: the outcome is damaged.
            OSError: the disk refused.
        """
        if self.outcome(key) is not None:  # before that, files of a commit may be there
            self._discard_parts(self.home(key))

    def _discard_parts(self, home: Path) -> None:
        discard(home / _FILES)
        for path in _numbered(home, rank_of_part_record).values():
            path.unlink(missing_ok=True)

    def leave(self, key: SaveKey) -> None:
        """Leave a gather, and nothing else."""
        for known in (self._records, self._outcomes):
            known.pop(key, None)
        descriptor = self._locks.pop(key, None)
        if descriptor is not None:
            os.close(descriptor)

    def close(self) -> None:
        """Nothing is to be ended: locks go with their gathers."""

    def delete(self, key: SaveKey) -> None:
        """Delete a gather that has its outcome, unless a living worker is in it.

        By its name first: a worker that joins at this moment must not have what it writes deleted
        from a directory that it may commit.
        """
        home = self.home(key)
        if all(is_left(path) for path in _numbered(home, rank_of_lock).values()):
            delete_directory(home, self._root)

    def retire(self, key: SaveKey) -> None:
        """Delete a gather of an earlier run that has its outcome, the second time that it is asked.

        Its outcome holds for a worker that is only now told of the save.
        """
        mark = self.home(key) / _RETIRED
        if mark.exists():
            self.delete(key)
        else:
            mark.touch()

    def found(self) -> list[SaveKey]:
        """The gathers that are there, by run and number."""
        folders = [path for path in children(gathers(self._root)) if path.is_dir()]
        names = (_NAME.fullmatch(path.name) for path in folders)
        each = [SaveKey(name[1], int(name[2])) for name in names if name is not None]
        return sorted(each, key=lambda key: (key.run, key.number))

    def _earlier(self, key: SaveKey) -> list[SaveKey]:
        return [one for one in self.found() if one.run == key.run and one.number < key.number]

    def _decided(self, key: SaveKey) -> GatherVerdict | None:
        if key not in self._outcomes:
            path = self.home(key) / _OUTCOME
            try:
                data = read_small_file(path, file_limits.MANIFEST)
            except FileNotFoundError:
                return None
            self._outcomes[key] = GatherVerdict.from_bytes(data, str(path))
        return self._outcomes[key]

    def _decide(self, key: SaveKey, verdict: GatherVerdict) -> GatherVerdict:
        """Make this the verdict unless there is one; return the one that counts."""
        with open_directory(self.home(key)) as folder, contextlib.suppress(FileExistsError):
            write_new(folder, _OUTCOME, verdict.to_bytes())
        counts = self._decided(key)
        assert counts is not None
        return counts

    def _finish(self, key: SaveKey, verdict: GatherVerdict) -> None:
        """Carry the verdict out, from wherever a killed process left it."""
        home = self.home(key)
        built = home / _FILES
        if not self._has(key, _DONE):
            if verdict.manifest is not None and self._is_unpublished(built, verdict.manifest):
                with open_directory(built) as folder, contextlib.suppress(FileExistsError):
                    write_new(folder, MANIFEST, verdict.to_bytes())
                final = self._root / check_checkpoint_id(verdict.manifest.checkpoint_id)
                publish_directory(built, final, self._root)
            (home / _DONE).touch()
        self._discard_parts(home)  # what it replaced, or what nobody commits

    def _finish_earlier(self, key: SaveKey, checkpoint_id: str) -> None:
        """Carry out the verdicts of earlier saves of this place, of which `key` takes the turn.

        Those of other places are tried as well, and keep no other from being committed: one of them
        may never get its name.

        Raises:
            OSError: the disk refused.
        """
        for earlier in self._earlier(key):
            try:
                self._finish_if_decided(earlier)
            except CheckpointCorruptError:  # nobody can carry it out
                continue
            except OSError:
                verdict = self._outcomes.get(earlier)
                other = verdict.manifest if verdict is not None else None
                if other is None or share_a_directory(other.checkpoint_id, checkpoint_id):
                    raise

    def _finish_if_decided(self, key: SaveKey) -> None:
        """Carry out the verdict of another save, if a killed process did not."""
        if self._has(key, _OUTCOME) and not self._has(key, _DONE):
            verdict = self._decided(key)
            assert verdict is not None
            self._finish(key, verdict)
            if key not in self._locks:
                self._outcomes.pop(key, None)

    def _is_unpublished(self, built: Path, manifest: Manifest) -> bool:
        """Whether the files of a commit that is not done still lie in the gather.

        Its process may have died behind the rename. Nobody has replaced it since: that begins with
        a look at earlier saves. What lies there may be what it replaced.
        """
        if digest_of_checkpoint(self._root / manifest.checkpoint_id) == manifest.digest:
            return False
        try:
            check_sizes(built, manifest)
        except CheckpointCorruptError:
            return False
        return digest_of_checkpoint(built) in {None, manifest.digest}

    def _has(self, key: SaveKey, name: str) -> bool:
        return (self.home(key) / name).exists()


def _numbered(home: Path, rank_of: Callable[[str], int | None]) -> dict[int, Path]:
    """The files of a gather that have a rank; by rank."""
    try:
        listed = os.listdir(home)  # noqa: PTH208 - a thousand of them, again and again
    except FileNotFoundError:
        return {}
    ranks = {name: rank_of(name) for name in listed}
    return {rank: home / name for name, rank in ranks.items() if rank is not None}
