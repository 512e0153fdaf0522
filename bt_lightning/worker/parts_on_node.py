"""Parts of one node's ranks on its own disk: on their way to the store, and after it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointCorruptError, CheckpointError
from bt_lightning.file_limits import MANIFEST
from bt_lightning.localdir.atomic_directory import discard
from bt_lightning.localdir.fsync import open_directory
from bt_lightning.localdir.gather_directory import GatherDirectory
from bt_lightning.localdir.kept_parts import (
    drop_kept_parts,
    keep_part,
    kept_manifests,
    newest_kept,
)
from bt_lightning.localdir.rename_noreplace import write_new
from bt_lightning.localdir.small_files import read_small_file
from bt_lightning.path_layout import part_file
from bt_lightning.sharding.gather_verdict import GatherVerdict

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bt_lightning.manifest import Manifest
    from bt_lightning.sharding.save_part import PartRecord, SaveKey, SavePart

_FILES: Final = "files"
_OUTCOME: Final = "outcome.json"
_KEPT: Final = 8
"""Number of saves whose outcome stays readable, for a worker that is started again."""


class PartsOnNode:
    """This rank's parts below `.bt_lightning/gather` of its node, beside those of its neighbours.

    `begin` and `put` are called by the commit thread.
    """

    def __init__(self, root: Path, rank: int) -> None:
        self._root = root
        self._rank = rank
        self._disk = GatherDirectory(root, rank)
        self._run = ""

    def begin(self, part: SavePart) -> tuple[Path, PartRecord | None]:
        """A folder for this rank's files, and its record if its part is durable here already.

        On a disk that takes nothing there is no folder: the part will be sent from memory. Gathers
        of earlier runs go, if all their workers are dead.
        """
        with contextlib.suppress(OSError):
            if self._run != part.key.run:
                self._run = part.key.run
                for key in self._disk.found():
                    if key.run != self._run:
                        self._disk.delete(key)
            self._disk.begin(part)
            return self._files(part.key), self._disk.records(part.key).get(self._rank)
        return self._files(part.key), None

    def _files(self, key: SaveKey) -> Path:
        return self._disk.home(key) / _FILES

    def put(self, record: PartRecord) -> None:
        """Write this rank's record, durably; one that is there stays."""
        self._disk.put(record)

    def file(self, key: SaveKey, path: str) -> Path:
        """Where a file of this rank's part lies until the save has its outcome."""
        return self._files(key) / path

    def outcome(self, key: SaveKey) -> GatherVerdict | None:
        """What came of a save, if this node has noted it."""
        path = self._disk.home(key) / _OUTCOME
        try:
            return GatherVerdict.from_bytes(read_small_file(path, MANIFEST), str(path))
        except (FileNotFoundError, NotADirectoryError, CheckpointCorruptError):
            return None

    def end(self, key: SaveKey, verdict: GatherVerdict | None, own: PartRecord | None) -> None:
        """Note what came of a save. Files of a committed one are kept, and older ones go.

        Raises:
            OSError: the disk refused; what is left goes with the gather.
        """
        home = self._disk.home(key)
        if verdict is not None:
            with (
                contextlib.suppress(FileExistsError, FileNotFoundError),
                open_directory(home) as folder,
            ):
                write_new(folder, _OUTCOME, verdict.to_bytes())
        try:
            if own is not None and verdict is not None and verdict.manifest is not None:
                self._keep(key, verdict.manifest, own)
        finally:
            for entry in own.files if own is not None else ():
                self.file(key, entry.path).unlink(missing_ok=True)
            (home / part_file(self._rank)).unlink(missing_ok=True)
            self._disk.leave(key)  # its files may be a neighbour's, who still sends them
            self._sweep(key)

    def _keep(self, key: SaveKey, manifest: Manifest, own: PartRecord) -> None:
        newest = newest_kept(self._root)
        if newest is None or newest.created <= manifest.created:
            files = {entry.path: self.file(key, entry.path) for entry in own.files}
            keep_part(self._root, manifest, files)
            drop_kept_parts(self._root, keep=[manifest.digest])

    def drop_gone(self, is_there: Callable[[Manifest], bool]) -> None:
        """Delete what is kept of checkpoints that the store has not any more.

        Raises:
            CheckpointError, OSError: what `is_there` raised, or the disk refused.
        """
        kept = [manifest for manifest in kept_manifests(self._root).values() if manifest]
        drop_kept_parts(self._root, keep=[one.digest for one in kept if is_there(one)])

    def _sweep(self, key: SaveKey) -> None:
        """Delete gathers of long ago."""
        for one in self._disk.found():
            if one.run == key.run and one.number <= key.number - _KEPT:
                with contextlib.suppress(CheckpointError, OSError):
                    if (self._disk.home(one) / _OUTCOME).exists():
                        discard(self._disk.home(one))
