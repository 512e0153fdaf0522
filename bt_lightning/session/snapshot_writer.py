"""Writes a state as a committed checkpoint directory; how a state becomes files is its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, TypeVar

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.localdir.commit import commit
from bt_lightning.localdir.disk_space import planned
from bt_lightning.localdir.list_and_verify_checkpoints import read_manifest
from bt_lightning.localdir.write_part_files import write_part_files
from bt_lightning.path_layout import check_checkpoint_id
from bt_lightning.session.checkpoint_paths import unwritten_error
from bt_lightning.sharding.save_part import SaveHead

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.manifest import Manifest, ManifestFacts
    from bt_lightning.sharding.save_part import PartRecord, SavePart
    from bt_lightning.snapshot.state_files import EncodingCache, Snapshot

State = TypeVar("State")


class SnapshotWriter(ABC, Generic[State]):
    """Makes snapshots and manifests of states; used on the training thread of the rank that writes.

    `State` is what is saved: a dictionary (`CheckpointWriter`) or the files of a folder
    (`FolderWriter`).
    """

    @abstractmethod
    def take(self, state: State, cache: EncodingCache | None = None) -> Snapshot:
        """Lay `state` out as files; copies no tensor.

        Raises:
            UnsupportedStateError: a value cannot be written.
        """

    @abstractmethod
    def facts(self, state: State, snapshot: Snapshot) -> ManifestFacts:
        """The manifest's facts about `state`, without files and generation."""

    @abstractmethod
    def step(self, state: State) -> int | None:
        """The optimizer step of `state`; None if it does not say."""

    @abstractmethod
    def resumable(self, state: State) -> bool:
        """Whether training can resume from `state`."""

    def save(
        self,
        state: State,
        final: Path,
        root: Path,
        after: int = 0,
        make_room: Callable[[int], None] = lambda _: None,
    ) -> Manifest:
        """Commit `state` as the directory `final` under `root`, and return its manifest.

        Its generation is greater than that of `final` and than `after`. `make_room` is called with
        the needed bytes before anything is written.

        Raises:
            DirectoryUnusableError: the disk is full or failed.
        """
        checkpoint_id = check_checkpoint_id(final.relative_to(root).as_posix())
        snapshot = self.take(state)
        facts = self.facts(state, snapshot)

        def describe(entries: tuple[FileEntry, ...]) -> Manifest:
            number = 1 + max(after, _generation(final))
            return facts.manifest(checkpoint_id, number, entries)

        make_room(planned(snapshot.sizes))
        try:
            return commit(final, root, snapshot.files, describe)
        except OSError as error:
            raise unwritten_error(checkpoint_id, root, error) from error

    def save_part(
        self,
        state: State,
        part: SavePart,
        root: Path,
        name: tuple[str, int],
        make_room: Callable[[int], None],
    ) -> PartRecord:
        """Write this rank's part of a save, to be committed with those of other ranks.

        `name` is the id of the checkpoint and the newest generation of it that is known; that of
        rank 0 counts. `make_room` as for `save`.

        Raises:
            DirectoryUnusableError: the disk is full or failed.
        """
        checkpoint_id, after = check_checkpoint_id(name[0]), name[1]
        snapshot = self.take(state)
        facts, head = self.facts(state, snapshot), None
        if part.rank == 0:
            head = SaveHead(checkpoint_id=checkpoint_id, after=after, facts=facts)
        make_room(planned(snapshot.sizes, snapshot.block_bytes))
        try:
            part = part.of_state(snapshot.fingerprint, facts.step, snapshot.block_bytes)
            return write_part_files(root, part, snapshot.files, head)
        except OSError as error:
            raise unwritten_error(checkpoint_id, root, error) from error


def _generation(final: Path) -> int:
    try:
        return read_manifest(final).generation
    except (CheckpointNotFoundError, CheckpointCorruptError):
        return 0
