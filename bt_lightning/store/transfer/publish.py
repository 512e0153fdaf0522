"""Publish a committed checkpoint: put the marker, the files, the manifest; delete the marker.

The manifest is put if absent, and commits the checkpoint. So a folder without a manifest is no
checkpoint, and one with a marker and no manifest is unfinished: a later start of the same job may
sweep it. `store.transfer.unpublish` is the way back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    LeaseHeldError,
    StoreTransientError,
)
from bt_lightning.localdir.list_and_verify_checkpoints import check_sizes, is_unchanged
from bt_lightning.localdir.sidecars import is_sidecar
from bt_lightning.path_layout import (
    MANIFEST,
    MARKER,
    PUBLISHING,
    hidden,
    store_folder,
    under,
)
from bt_lightning.store.interface import Reuse, read_any
from bt_lightning.store.transfer.file_source import FileSource, same_ranges
from bt_lightning.store.transfer.parallel_reads import in_parallel
from bt_lightning.store.transfer.store_reservations import Reservations
from bt_lightning.store.transfer.store_to_store import ReaderSource
from bt_lightning.store.transfer.unpublish import own_keys
from bt_lightning.store.transfer.upload_progress_source import MeteredSource

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.localdir.list_and_verify_checkpoints import LocalCheckpoint
    from bt_lightning.manifest import Manifest
    from bt_lightning.store.interface import Store
    from bt_lightning.store.lease import Lease
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader
    from bt_lightning.store.transfer.file_source import DescribedSource
    from bt_lightning.store.transfer.resume_publication import SentFiles


_SMALL_BYTES: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Base:
    """A checkpoint in the store whose unchanged blocks can be copied instead of uploaded."""

    folder: str
    """Key prefix of the checkpoint."""
    manifest: Manifest

    def reuse(self, entry: FileEntry) -> Reuse | None:
        """The ranges of a file that this checkpoint has too; None if it has none."""
        older = self.manifest.entry(entry.path)
        ranges = same_ranges(entry, older) if older is not None else ()
        return Reuse(f"{self.folder}/{entry.path}", ranges) if ranges else None


def base_of(prefix: str, stored: Mapping[str, Manifest]) -> Base | None:
    """The newest of the checkpoints of a store: most of what did not change since is in it."""
    if not stored:
        return None
    folder, manifest = max(stored.items(), key=lambda item: item[1].order)
    return Base(under(prefix, folder), manifest)


@dataclass(frozen=True, slots=True)
class Content:
    """A checkpoint that lies in no directory, such as one in the arena."""

    manifest: Manifest
    sources: Mapping[str, DescribedSource]
    """Path -> bytes of the file; they do not change."""


@dataclass(frozen=True, slots=True)
class LeasedPublisher:
    """The one process that may write below a prefix: its lease, and the files that it sent."""

    lease: Lease
    sent: SentFiles
    on_bytes: Callable[[int], None] | None = None
    """Called with a number of bytes when they were sent, by several threads."""
    check: Callable[[], None] = lambda: None
    """Called before each file; an error that it raises ends the publication, which can resume."""


def publish(
    store: Store,
    prefix: str,
    checkpoint: LocalCheckpoint,
    *,
    base: Base | None = None,
    publisher: LeasedPublisher | None = None,
) -> str:
    """Copy a committed local checkpoint into the store and commit it there; return its folder.

    Called in the worker. Idempotent. If the folder holds another checkpoint, the next number is
    taken. Blocks that did not change since `base` are copied inside the store. With `publisher`,
    files that an earlier try sent are not sent again, and nothing is committed after it lost the
    lease.

    Raises:
        CheckpointNotFoundError: the local checkpoint was replaced or deleted meanwhile; the files
            that were sent have no manifest, so they are no checkpoint.
        CheckpointCorruptError: the local checkpoint is damaged.
        LeaseHeldError: another process took the lease.
        StoreError: the store refused.
    """
    manifest = checkpoint.manifest
    data = manifest.to_bytes()
    folder, exists = folder_for(store, prefix, manifest)
    target = under(prefix, folder)
    if exists:
        store.delete([f"{target}/{MARKER}"])  # a publisher died at its last step
        return folder
    try:
        check_sizes(checkpoint.path, manifest)
        store.put(f"{target}/{MARKER}", PUBLISHING)
        _send_files(store, target, checkpoint, base, publisher)
        _compare_sizes(store, target, manifest)
    except (CheckpointCorruptError, OSError) as error:
        if is_unchanged(checkpoint.path, manifest):
            raise
        raise _replaced(checkpoint) from error  # a file was deleted, or is of the next generation
    if not is_unchanged(checkpoint.path, manifest):
        raise _replaced(checkpoint)
    _commit(store, target, data, publisher)
    return folder


def publish_sources(
    store: Store, prefix: str, content: Content, *, base: Base | None, publisher: LeasedPublisher
) -> str:
    """Commit in the store a checkpoint that lies in no directory; return its folder.

    Otherwise as `publish`.

    Raises:
        LeaseHeldError: another process took the lease.
        StoreError: the store refused; files that were sent have no manifest.
    """
    manifest = content.manifest
    data = manifest.to_bytes()
    folder, exists = folder_for(store, prefix, manifest)
    target = under(prefix, folder)
    if exists:
        store.delete([f"{target}/{MARKER}"])
        return folder
    store.put(f"{target}/{MARKER}", PUBLISHING)
    sizes = _sent_sizes(store, target, publisher)
    for entry in manifest.files:
        if not _is_sent(publisher, sizes, f"{target}/{entry.path}", entry):
            _send(store, f"{target}/{entry.path}", content.sources[entry.path], base, publisher)
    _compare_sizes(store, target, manifest)
    _commit(store, target, data, publisher)
    return folder


def is_published(store: Store, prefix: str, folder: str, manifest: Manifest) -> bool:
    """Whether the store holds this checkpoint at this moment, each file with its full size.

    Raises:
        StoreError: the store refused.
    """
    target = under(prefix, folder)
    if read_any(store, f"{target}/{MANIFEST}") != manifest.to_bytes():
        return False
    sizes = _sizes(store, target)
    return all(sizes.get(f"{target}/{entry.path}") == entry.size for entry in manifest.files)


def copy_checkpoint(
    reader: CheckpointReader, store: Store, prefix: str, lease: Lease, base: Base | None = None
) -> str:
    """Copy a committed checkpoint from another store or a directory; return its folder.

    The bytes go through memory only and are verified. If the checkpoint lies in the same store,
    `base` is the checkpoint itself: then the store copies. Otherwise as `publish`.
    """
    manifest = reader.manifest
    data = manifest.to_bytes()
    folder, exists = folder_for(store, prefix, manifest)
    target = under(prefix, folder)
    if exists:
        store.delete([f"{target}/{MARKER}"])
        return folder
    store.put(f"{target}/{MARKER}", PUBLISHING)
    for entry in manifest.files:
        reader.check(entry)
        _send(store, f"{target}/{entry.path}", ReaderSource(reader, entry), base, None)
    _compare_sizes(store, target, manifest)
    lease.confirm()
    _commit(store, target, data, None)
    return folder


def folder_for(store: Store, prefix: str, manifest: Manifest) -> tuple[str, bool]:
    """The folder for a checkpoint, and whether the store already has it there.

    Folders of other checkpoints, of the user's files and of saves of several ranks are skipped: to
    those something may still be sent, though the save was given up.
    """
    data = manifest.to_bytes()
    reserved = Reservations(store, prefix)
    number = manifest.generation
    while True:
        folder = store_folder(manifest.checkpoint_id, number)
        found = read_any(store, f"{under(prefix, folder)}/{MANIFEST}")
        if found == data:
            return folder, True
        free = found is None and not _is_users(store, under(prefix, folder))
        if free and reserved.holder(folder) is None:
            return folder, False
        number += 1


def _is_users(store: Store, target: str) -> bool:
    """Whether a folder without a manifest holds the user's files, not an unfinished checkpoint.

    An unfinished checkpoint has a marker: it is put first and deleted last.
    """
    names = [key.removeprefix(f"{target}/") for key in own_keys(store, target)]
    if any(not hidden(name) for name in names):
        return MARKER not in names
    return store.size(target) is not None  # an object has the folder's name


def _send_files(
    store: Store,
    target: str,
    checkpoint: LocalCheckpoint,
    base: Base | None,
    publisher: LeasedPublisher | None,
) -> None:
    """Send large files one after the other, each in parallel parts, and small ones in parallel."""
    sizes = _sent_sizes(store, target, publisher)
    content, shared = checkpoint.content, is_sidecar(checkpoint.path)

    def send(entry: FileEntry) -> None:
        if publisher is not None:
            publisher.check()
        key = f"{target}/{entry.path}"
        if _is_sent(publisher, sizes, key, entry):
            return
        with FileSource(content / entry.path, entry, shared=shared) as source:
            _send(store, key, source, base, publisher)

    small = [entry for entry in checkpoint.manifest.files if entry.size <= _SMALL_BYTES]
    in_parallel(send, [each for each in checkpoint.manifest.files if each.size > _SMALL_BYTES], 1)
    in_parallel(send, small, min(8, len(small) // 4))  # a thread for each four files


def _sent_sizes(store: Store, target: str, publisher: LeasedPublisher | None) -> dict[str, int]:
    return _sizes(store, target) if publisher and publisher.sent.under(target) else {}


def _is_sent(
    publisher: LeasedPublisher | None, sizes: Mapping[str, int], key: str, entry: FileEntry
) -> bool:
    """Whether an earlier try sent the file and the store has it; then report its bytes as sent."""
    sent = publisher is not None and publisher.sent.get(key) == entry.xxh3_128
    if not sent or sizes.get(key) != entry.size:
        return False
    if publisher is not None and publisher.on_bytes is not None:
        publisher.on_bytes(entry.size)
    return True


def _send(
    store: Store,
    key: str,
    source: DescribedSource,
    base: Base | None,
    publisher: LeasedPublisher | None,
) -> None:
    reuse = base.reuse(source.entry) if base else None
    if publisher is None:
        store.send(source, key, reuse)
        return
    publisher.sent.sending(key)
    metered = source if publisher.on_bytes is None else MeteredSource(source, publisher.on_bytes)
    store.send(metered, key, reuse)
    publisher.sent.add(key, source.entry.xxh3_128)


def _commit(store: Store, target: str, manifest: bytes, publisher: LeasedPublisher | None) -> None:
    if publisher is None:
        store.put_new(f"{target}/{MANIFEST}", manifest)
    else:
        publisher.lease.confirm()
        store.put_new(f"{target}/{MANIFEST}", manifest)
        try:
            publisher.lease.confirm()
        except LeaseHeldError:  # the new holder may have swept or overwritten its files
            store.delete([f"{target}/{MANIFEST}"])
            raise
        publisher.sent.drop(target)
    store.delete([f"{target}/{MARKER}"])


def send_ahead(
    store: Store,
    target: str,
    source: DescribedSource,
    base: Base | None,
    publisher: LeasedPublisher,
) -> None:
    """Send a file of a checkpoint that is not committed yet, and record it in `publisher`.

    `target` is the key prefix that the checkpoint will have. `publish` later does not send the file
    again; if the checkpoint is not committed, `unpublish` deletes it. Nothing is sent if `target`
    holds a checkpoint or the user's files.
    """
    if read_any(store, f"{target}/{MANIFEST}") is None and not _is_users(store, target):
        store.put(f"{target}/{MARKER}", PUBLISHING)
        _send(store, f"{target}/{source.entry.path}", source, base, publisher)


def _sizes(store: Store, base: str) -> dict[str, int]:
    return {info.key: info.size for info in store.list(base)}


def _compare_sizes(store: Store, base: str, manifest: Manifest) -> None:
    sizes = _sizes(store, base)
    for entry in manifest.files:
        size = sizes.get(f"{base}/{entry.path}")
        if size != entry.size:
            msg = (
                f"{store.name}/{base}/{entry.path} has {size} bytes after upload, not {entry.size}"
            )
            raise StoreTransientError(msg)


def _replaced(checkpoint: LocalCheckpoint) -> CheckpointNotFoundError:
    return CheckpointNotFoundError(f"{checkpoint.path} was replaced while it was being published")
