"""The checkpoints below a directory: committed ones, and others that are recognised as they lie."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointNotFoundError, InvalidSettingError
from bt_lightning.localdir import protection as local_protection
from bt_lightning.localdir.atomic_directory import delete_directory, tidy
from bt_lightning.localdir.commit_sidecar import delete_content, delete_foreign
from bt_lightning.localdir.job_id_file import job_of
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, read_manifest
from bt_lightning.localdir.sidecars import content_directory, is_sidecar, sidecar_places
from bt_lightning.manage.checkpoint_items import NOT_COMMITTED, CheckpointItem
from bt_lightning.manage.uncommitted import complete_digests, find_file, find_uncommitted
from bt_lightning.settings import Settings
from bt_lightning.store.catalog import protection as stored_protection
from bt_lightning.store.transfer.files_reader import DirectoryReader, FilesReader

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from bt_lightning.localdir.list_and_verify_checkpoints import LocalCheckpoint
    from bt_lightning.manage.uncommitted import Uncommitted
    from bt_lightning.protection_record import Protection
    from bt_lightning.store.transfer import checkpoint_reader


class DirectoryCheckpoints:
    """The checkpoints that are committed under a directory."""

    def __init__(self, root: Path, *, only: str | None = None) -> None:
        """With `only`, the file of that name is the only checkpoint."""
        self.name, self.root, self._only = str(root), root, only
        job = job_of(Settings.from_environ(os.environ), root)
        self.project, self.job, self.node_rank = job.project, job.job, job.node_rank
        self._refused: list[str] = []
        self.unread: list[str] = []
        """Those of `refused` about folders that could not be read, or are no checkpoint yet."""
        self._paths: dict[str, Path] = {}
        """Name -> where its manifest lies, as of the last `items`."""
        self._uncommitted: dict[str, Uncommitted] = {}

    @property
    def refused(self) -> list[str]:
        """Reasons, as of the last `items`."""
        return self._refused

    def items(self) -> list[CheckpointItem]:
        """Read from the disk at each call; only the newest generation of an id."""
        if self._only is not None:
            self._refused, self.unread = [], []
            return self._look_for_uncommitted(())
        found, refused, unread = list_committed(self.root)
        self.unread = [item.reason for item in unread]
        self._refused = [*self.unread, *(item.reason for item in refused)]
        paths: dict[str, Path] = {}
        items: dict[str, CheckpointItem] = {}
        for checkpoint in found:
            item = self._committed(checkpoint)
            if item.name not in items:
                items[item.name] = item
                paths[item.name] = checkpoint.path
        self._paths = paths
        for one in self._look_for_uncommitted(items):
            items[one.name] = one
        return sorted(items.values(), key=lambda item: item.manifest.order, reverse=True)

    def _committed(self, checkpoint: LocalCheckpoint) -> CheckpointItem:
        manifest, path = checkpoint.manifest, checkpoint.path
        name, where = path.relative_to(self.root).as_posix(), path
        if is_sidecar(path):
            name, where = manifest.checkpoint_id, self.root / manifest.checkpoint_id
        return CheckpointItem(
            project=self.project,
            job=self.job,
            node_rank=self.node_rank,
            name=name,
            where=str(where),
            manifest=manifest,
            protected=local_protection.is_protected_local(path),
        )

    def _look_for_uncommitted(self, committed: Collection[str]) -> list[CheckpointItem]:
        """What other programs wrote, and no worker has committed; nothing within a checkpoint."""
        if "." in committed:
            return []
        if self._only is None:
            places = sidecar_places(self.root)
            found, left_out = find_uncommitted(self.root, places, committed)
        else:
            found, left_out = find_file(self.root, self._only)
        self._refused += left_out
        self.unread += left_out
        items: list[CheckpointItem] = []
        uncommitted: dict[str, Uncommitted] = {}
        for one in found:
            at_root = one.candidate.place == ("", "") and one.candidate.alone
            name = "." if at_root else one.manifest.checkpoint_id
            uncommitted[name] = one
            items.append(
                CheckpointItem(
                    project=self.project,
                    job=self.job,
                    node_rank=self.node_rank,
                    name=name,
                    where=str(self.root.joinpath(*one.candidate.place)),
                    manifest=one.manifest,
                    protected=False,
                    committed=False,
                    sync_status=NOT_COMMITTED,
                )
            )
        self._uncommitted = uncommitted
        return items

    def reader(self, item: CheckpointItem) -> checkpoint_reader.CheckpointReader:
        """A reader of the directory; close it after use."""
        if item.committed:
            return DirectoryReader(self._path(item))
        return FilesReader(self.root / self._found(item).candidate.folder, item.manifest)

    def with_digests(
        self, item: CheckpointItem, on_bytes: Callable[[int], None] = lambda _: None
    ) -> CheckpointItem:
        """The item with the digest of every file; those of what no worker committed are made now.

        Raises:
            CheckpointNotFoundError: a file changed since `items`.
            OSError: a file cannot be read.
        """
        if item.committed:
            return item
        one = complete_digests(self.root, self._found(item), on_bytes)
        self._uncommitted[item.name] = one
        return replace(item, manifest=one.manifest)

    def url(self, item: CheckpointItem, path: str, expires_s: int) -> str:  # noqa: ARG002 - has no end
        """A file:// URL, which does not expire."""
        if item.committed:
            return (content_directory(self._path(item)) / path).resolve().as_uri()
        return (self.root / self._found(item).candidate.folder / path).resolve().as_uri()

    def protection(self, item: CheckpointItem) -> Protection | None:
        """Read from the disk."""
        return local_protection.protection_of(self._path(item)) if item.committed else None

    def protect(self, item: CheckpointItem, protection: Protection) -> None:
        """Written to the disk, durably.

        Raises:
            InvalidSettingError: no worker has committed it, so nothing would heed it.
        """
        self._check_committed(item, "protected")
        local_protection.protect_local(self._path(item), protection)

    def unprotect(self, item: CheckpointItem) -> None:
        """Deleted from the disk."""
        if item.committed:
            local_protection.unprotect_local(self._path(item))

    def delete(self, item: CheckpointItem) -> None:
        """Delete it from the disk, unless it is protected or was replaced since `items`.

        Raises:
            CheckpointProtectedError: it is protected.
            CheckpointNotFoundError: it is gone, or was replaced.
        """
        if not item.committed:
            delete_content(self.root, self._found(item).content())
            return
        path = self._path(item)
        protection = self.protection(item)
        if protection is not None:
            raise stored_protection.protected_error(item.name, protection)
        if read_manifest(path).digest != item.manifest.digest:
            msg = f"{path} was replaced by a newer one meanwhile: list again"
            raise CheckpointNotFoundError(msg)
        if is_sidecar(path):
            delete_foreign(path, self.root, item.manifest.digest)
        else:
            delete_directory(path, self.root)
        tidy(self.root)

    def check_movable(self, item: CheckpointItem) -> None:
        """Raise `InvalidSettingError` for what lies in a folder of another program."""
        self._check_committed(item, "put aside")
        if is_sidecar(self._path(item)):
            msg = f"{item.name} is another program's, and cannot be put aside: delete it instead"
            raise InvalidSettingError(msg)

    def _check_committed(self, item: CheckpointItem, what: str) -> None:
        if not item.committed:
            msg = (
                f"{item.name} cannot be {what}: no job has committed it. `download` makes a"
                " committed copy of it"
            )
            raise InvalidSettingError(msg)

    def _found(self, item: CheckpointItem) -> Uncommitted:
        try:
            return self._uncommitted[item.name]
        except KeyError as error:
            msg = f"{item.where} is gone, or changed: list again"
            raise CheckpointNotFoundError(msg) from error

    def _path(self, item: CheckpointItem) -> Path:
        if item.name in self._paths:
            return self._paths[item.name]
        return self.root / item.name if item.name != "." else self.root
