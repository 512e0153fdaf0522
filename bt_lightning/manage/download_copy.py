"""Download of checkpoints to a directory, and copies of them to another store."""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING, Any

from bt_lightning.errors import CheckpointExistsError, CheckpointNotFoundError
from bt_lightning.glob_patterns import chosen
from bt_lightning.localdir.atomic_directory import tidy
from bt_lightning.localdir.directory_writable_check import check_root
from bt_lightning.localdir.list_and_verify_checkpoints import check_sizes, read_manifest
from bt_lightning.manage.complete_items import with_digests
from bt_lightning.manage.job_checkpoints import StoreCheckpoints
from bt_lightning.manage.training_state_files import is_training_state
from bt_lightning.manage.verified_reads import open_reader
from bt_lightning.path_layout import ADAPTER_CONFIG, BASE, job_prefix
from bt_lightning.store.catalog.removal_requests import forget_removals
from bt_lightning.store.lease import Lease
from bt_lightning.store.transfer.fetch_to_disk import bring
from bt_lightning.store.transfer.publish import Base, copy_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints
    from bt_lightning.manifest import Manifest
    from bt_lightning.store.interface import ReadProgress, Store
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader


class CountingReader:
    """A checkpoint reader that calls `on_bytes` with the number of bytes of each read."""

    def __init__(self, inner: CheckpointReader, on_bytes: Callable[[int], Any]) -> None:
        self._inner, self._on_bytes = inner, on_bytes
        self.name, self.manifest = inner.name, inner.manifest
        self.piece_bytes, self.connections = inner.piece_bytes, inner.connections
        self.gap_bytes = inner.gap_bytes

    def check(self, entry: FileEntry) -> None:
        """As the wrapped reader."""
        self._inner.check(entry)

    def expect(self, entry: FileEntry, offset: int, size: int) -> None:
        """As the wrapped reader."""
        self._inner.expect(entry, offset, size)

    def read_copy(
        self,
        entry: FileEntry,
        offset: int,
        targets: Sequence[memoryview],
        on_progress: ReadProgress = int,
    ) -> bool:
        """As the wrapped reader; called by several threads."""
        found = self._inner.read_copy(entry, offset, targets, on_progress)
        if found:
            self._on_bytes(sum(map(len, targets)))
        return found

    def read_into(
        self,
        entry: FileEntry,
        offset: int,
        targets: Sequence[memoryview],
        on_progress: ReadProgress = int,
    ) -> None:
        """As the wrapped reader; called by several threads."""
        self._inner.read_into(entry, offset, targets, on_progress)
        self._on_bytes(sum(map(len, targets)))


def wanted(manifest: Manifest, include: Sequence[str], exclude: Sequence[str]) -> list[FileEntry]:
    """The files of a manifest that the glob patterns select.

    Raises:
        CheckpointNotFoundError: they select none.
    """
    found = [entry for entry in manifest.files if chosen(entry.path, include, exclude)]
    if not found:
        paths = ", ".join(sorted(entry.path for entry in manifest.files)[:8])
        msg = f"no file of {manifest.checkpoint_id} is named by these patterns; it has {paths}"
        raise CheckpointNotFoundError(msg)
    return found


def serving_entries(manifest: Manifest) -> list[FileEntry]:
    """Files that a server of the model reads: weights, configuration, tokenizer.

    A sharded checkpoint has no such weights: `serving_weights` plans them.

    Raises:
        CheckpointNotFoundError: the checkpoint has no weights as safetensors, or not all.
    """
    parts = manifest.has_parts
    found = [e for e in manifest.files if not is_training_state(e.path, has_parts=parts)]
    if not manifest.is_sharded and not any(entry.path.endswith(".safetensors") for entry in found):
        msg = f"{manifest.checkpoint_id} has no weights as safetensors"
        raise CheckpointNotFoundError(msg)
    if manifest.entry(BASE) is not None and manifest.entry(ADAPTER_CONFIG) is None:
        msg = (
            f"{manifest.checkpoint_id} has the weights that were trained, without their frozen base"
            " (save_frozen): load it in the script that trained it, and save the model from there"
        )
        raise CheckpointNotFoundError(msg)
    return found


def download_item(
    source: JobCheckpoints,
    item: CheckpointItem,
    target: Path,
    entries: Sequence[FileEntry],
    on_bytes: Callable[[int], Any],
) -> Path | None:
    """Download a checkpoint, or some of its files, to `<target>/<its name>`, verified.

    The directory appears in one rename. All files make a committed checkpoint again, some of them
    only a directory of files. The next call continues one that was interrupted. Returns the
    directory; None if the checkpoint is there already, complete.

    Raises:
        CheckpointExistsError: something else has that name.
        CheckpointCorruptError, CheckpointNotFoundError: its files differ from its manifest.
        DirectoryFullError, DirectoryUnusableError: it does not fit, or cannot be written.
        StoreError: the store refused.
    """
    final = target / (item.manifest.checkpoint_id if item.name == "." else item.name)
    whole = len(entries) == len(item.manifest.files)
    if final.exists() or final.is_symlink():
        if whole and _is_there(final, item.manifest):
            return None
        msg = f"{final} is there already, and is not this: move it, or name another directory"
        raise CheckpointExistsError(msg)
    root = check_root(target)
    item = with_digests(source, item, on_bytes)
    entries = [e for e in item.manifest.files if e.path in {entry.path for entry in entries}]
    try:
        with open_reader(source, item) as reader:
            some = None if whole else tuple(entries)
            bring(CountingReader(reader, on_bytes), root, final, some, replace=False)
    except FileExistsError as error:
        msg = f"{final} was created by another process meanwhile: it was not changed"
        raise CheckpointExistsError(msg) from error
    finally:
        tidy(root)
    return final


def copy_item(
    source: JobCheckpoints,
    item: CheckpointItem,
    store: Store,
    to: tuple[str, str],
    on_bytes: Callable[[int], Any],
) -> str:
    """Copy a checkpoint to the project and job `to` of a store, verified; return its key prefix.

    Within one store the server copies the bytes, if it can.

    Raises:
        LeaseHeldError: a running job publishes there.
        CheckpointCorruptError, CheckpointNotFoundError: its files differ from its manifest.
        StoreError: a store refused.
    """
    prefix = job_prefix(*to, item.node_rank)
    base, item = None, with_digests(source, item, on_bytes)
    if isinstance(source, StoreCheckpoints) and source.store.name == store.name:
        base = Base(item.where, item.manifest)
    with job_lease(store, prefix) as lease, open_reader(source, item) as reader:
        forget_removals(store, prefix, frozenset({item.manifest.digest}))
        folder = copy_checkpoint(CountingReader(reader, on_bytes), store, prefix, lease, base)
    return f"{prefix}/{folder}"


@contextlib.contextmanager
def job_lease(store: Store, prefix: str) -> Iterator[Lease]:
    """Hold the lease of a job's part of a store in the block.

    Raises:
        LeaseHeldError: another process holds it.
        StoreError: the store refused.
    """
    lease = Lease(store, prefix, f"command-{uuid.uuid4().hex}")
    lease.take()
    try:
        yield lease
    finally:
        lease.release()


def _is_there(final: Path, manifest: Manifest) -> bool:
    try:
        if read_manifest(final).digest != manifest.digest:
            return False
        check_sizes(final, manifest)
    except (CheckpointNotFoundError, ValueError, OSError):
        return False
    return True
