"""Local checkpoint -> store: marker, files, manifest (put-if-absent), marker away.

So a folder without a manifest is never a checkpoint, and one with a marker and no manifest is
nobody's: a later start of the same job may sweep it. The way out is `store.transfer.unpublish`.
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
from bt_lightning.layout import (
    MANIFEST,
    MARKER,
    PUBLISHING,
    hidden,
    store_folder,
    under,
)
from bt_lightning.localdir.local_checkpoints import check_sizes, is_unchanged
from bt_lightning.store.interface import Reuse, read_any
from bt_lightning.store.transfer.file_source import FileSource, same_ranges
from bt_lightning.store.transfer.metered_source import MeteredSource
from bt_lightning.store.transfer.parallel_reads import in_parallel
from bt_lightning.store.transfer.store_to_store import ReaderSource
from bt_lightning.store.transfer.unpublish import own_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bt_lightning.localdir.local_checkpoints import LocalCheckpoint
    from bt_lightning.manifest import FileEntry, Manifest
    from bt_lightning.store.interface import Store
    from bt_lightning.store.lease import Lease
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader
    from bt_lightning.store.transfer.file_source import DescribedSource
    from bt_lightning.store.transfer.resume_publication import SentFiles


_SMALL_BYTES: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Base:
    """A checkpoint of the store; what others have in common with it need not be sent."""

    folder: str
    """Its key prefix."""
    manifest: Manifest

    def reuse(self, entry: FileEntry) -> Reuse | None:
        """What of a file it has as well."""
        older = self.manifest.entry(entry.path)
        ranges = same_ranges(entry, older) if older is not None else ()
        return Reuse(f"{self.folder}/{entry.path}", ranges) if ranges else None


@dataclass(frozen=True, slots=True)
class Content:
    """A checkpoint that lies in no directory: its files by their paths, which stay as they are."""

    manifest: Manifest
    sources: Mapping[str, DescribedSource]


@dataclass(frozen=True, slots=True)
class Tenure:
    """Of the only process that writes to a place: its lease, and what it knows to be sent."""

    lease: Lease
    sent: SentFiles
    on_bytes: Callable[[int], None] | None = None
    """Told of bytes as they are sent, by several threads."""
    check: Callable[[], None] = lambda: None
    """Called before each file; what it raises ends the publication, for another to go on with."""


def publish(
    store: Store,
    prefix: str,
    checkpoint: LocalCheckpoint,
    *,
    base: Base | None = None,
    tenure: Tenure | None = None,
) -> str:
    """Copy a committed checkpoint into the store and commit it there; return its folder.

    Idempotent. A folder whose manifest is another's is left alone: the next number is taken. What
    did not change since `base` is copied inside the store. With `tenure`, what an earlier try sent
    is not sent again, and nothing is committed once another process writes there.

    Raises:
        CheckpointNotFoundError: the local checkpoint was replaced or deleted meanwhile; what was
            sent of it has no manifest, so nobody sees it.
        CheckpointCorruptError: the local checkpoint is damaged.
        LeaseHeldError: another process has come to write there.
        StoreError: the store refused.
    """
    manifest = checkpoint.manifest
    data = manifest.to_bytes()
    folder, there = folder_for(store, prefix, manifest)
    place = under(prefix, folder)
    if there:
        store.delete([f"{place}/{MARKER}"])  # of a publisher that died at its last step
        return folder
    try:
        check_sizes(checkpoint.path, manifest)
        store.put(f"{place}/{MARKER}", PUBLISHING)
        _send_files(store, place, checkpoint, base, tenure)
        _compare_sizes(store, place, manifest)
    except (CheckpointCorruptError, OSError) as error:
        if is_unchanged(checkpoint.path, manifest):
            raise
        raise _replaced(checkpoint) from error  # a file of it was gone, or of the next generation
    if not is_unchanged(checkpoint.path, manifest):
        raise _replaced(checkpoint)
    _commit(store, place, data, tenure)
    return folder


def publish_sources(
    store: Store, prefix: str, content: Content, *, base: Base | None, tenure: Tenure
) -> str:
    """Commit in the store what lies in no directory of the disk; return its folder.

    Otherwise as `publish`.

    Raises:
        LeaseHeldError: another process has come to write there.
        StoreError: the store refused; what was sent has no manifest, so nobody sees it.
    """
    manifest = content.manifest
    data = manifest.to_bytes()
    folder, there = folder_for(store, prefix, manifest)
    place = under(prefix, folder)
    if there:
        store.delete([f"{place}/{MARKER}"])
        return folder
    store.put(f"{place}/{MARKER}", PUBLISHING)
    sizes = _sent_sizes(store, place, tenure)
    for entry in manifest.files:
        if not _is_sent(tenure, sizes, f"{place}/{entry.path}", entry):
            _send(store, f"{place}/{entry.path}", content.sources[entry.path], base, tenure)
    _compare_sizes(store, place, manifest)
    _commit(store, place, data, tenure)
    return folder


def is_published(store: Store, prefix: str, folder: str, manifest: Manifest) -> bool:
    """Whether the store holds this checkpoint just now, each file in its full length.

    Raises:
        StoreError: the store refused.
    """
    place = under(prefix, folder)
    if read_any(store, f"{place}/{MANIFEST}") != manifest.to_bytes():
        return False
    sizes = _sizes(store, place)
    return all(sizes.get(f"{place}/{entry.path}") == entry.size for entry in manifest.files)


def copy_checkpoint(
    place: CheckpointReader, store: Store, prefix: str, lease: Lease, base: Base | None = None
) -> str:
    """Copy a committed checkpoint from anywhere into the store; return its folder there.

    Every byte is verified on its way, through memory only. `base` is the checkpoint itself, if it
    lies in the same store: it is copied inside of it then. Otherwise as `publish`.
    """
    manifest = place.manifest
    data = manifest.to_bytes()
    folder, there = folder_for(store, prefix, manifest)
    target = under(prefix, folder)
    if there:
        store.delete([f"{target}/{MARKER}"])
        return folder
    store.put(f"{target}/{MARKER}", PUBLISHING)
    for entry in manifest.files:
        place.check(entry)
        _send(store, f"{target}/{entry.path}", ReaderSource(place, entry), base, None)
    _compare_sizes(store, target, manifest)
    lease.confirm()
    _commit(store, target, data, None)
    return folder


def folder_for(store: Store, prefix: str, manifest: Manifest) -> tuple[str, bool]:
    """Where a checkpoint belongs, and whether it is there; what is another's is left alone."""
    data = manifest.to_bytes()
    number = manifest.generation
    while True:
        folder = store_folder(manifest.checkpoint_id, number)
        there = read_any(store, f"{under(prefix, folder)}/{MANIFEST}")
        if there == data or (there is None and not _is_users(store, under(prefix, folder))):
            return folder, there is not None
        number += 1


def _is_users(store: Store, place: str) -> bool:
    """Whether a folder without a manifest holds files of the user's: then it is no checkpoint's.

    Whoever publishes or deletes a checkpoint has its marker there first, and takes it away last.
    """
    names = [key.removeprefix(f"{place}/") for key in own_keys(store, place)]
    if any(not hidden(name) for name in names):
        return MARKER not in names
    return store.size(place) is not None  # a file of that name


def _send_files(
    store: Store,
    place: str,
    checkpoint: LocalCheckpoint,
    base: Base | None,
    tenure: Tenure | None,
) -> None:
    """Large files one after the other, each in parts side by side; small ones side by side."""
    sizes = _sent_sizes(store, place, tenure)

    def send(entry: FileEntry) -> None:
        if tenure is not None:
            tenure.check()
        key = f"{place}/{entry.path}"
        if _is_sent(tenure, sizes, key, entry):
            return
        with FileSource(checkpoint.path / entry.path, entry) as source:
            _send(store, key, source, base, tenure)

    small = [entry for entry in checkpoint.manifest.files if entry.size <= _SMALL_BYTES]
    in_parallel(send, [each for each in checkpoint.manifest.files if each.size > _SMALL_BYTES], 1)
    in_parallel(send, small, min(8, len(small) // 4))  # for fewer files no thread is worth it


def _sent_sizes(store: Store, place: str, tenure: Tenure | None) -> dict[str, int]:
    return _sizes(store, place) if tenure and tenure.sent.under(place) else {}


def _is_sent(tenure: Tenure | None, sizes: Mapping[str, int], key: str, entry: FileEntry) -> bool:
    """Whether an earlier try sent that file, and it is there; its bytes count as sent."""
    sent = tenure is not None and tenure.sent.get(key) == entry.xxh3_128
    if not sent or sizes.get(key) != entry.size:
        return False
    if tenure is not None and tenure.on_bytes is not None:
        tenure.on_bytes(entry.size)
    return True


def _send(
    store: Store, key: str, source: DescribedSource, base: Base | None, tenure: Tenure | None
) -> None:
    reuse = base.reuse(source.entry) if base else None
    if tenure is None:
        store.send(source, key, reuse)
        return
    tenure.sent.sending(key)
    metered = source if tenure.on_bytes is None else MeteredSource(source, tenure.on_bytes)
    store.send(metered, key, reuse)
    tenure.sent.add(key, source.entry.xxh3_128)


def _commit(store: Store, place: str, manifest: bytes, tenure: Tenure | None) -> None:
    if tenure is None:
        store.put_new(f"{place}/{MANIFEST}", manifest)
    else:
        tenure.lease.confirm()
        store.put_new(f"{place}/{MANIFEST}", manifest)
        try:
            tenure.lease.confirm()
        except LeaseHeldError:  # its files may have been swept, or written over
            store.delete([f"{place}/{MANIFEST}"])
            raise
        tenure.sent.drop(place)
    store.delete([f"{place}/{MARKER}"])


def send_ahead(
    store: Store, place: str, source: DescribedSource, base: Base | None, tenure: Tenure
) -> None:
    """Send a file of a checkpoint that is not committed yet; `tenure` is told of it.

    `place` is the key prefix that the checkpoint will have. Nobody sees the file before `publish`,
    which leaves it out; if it never comes to that, `unpublish` deletes it. Nothing is sent to a
    place that holds a checkpoint.
    """
    if read_any(store, f"{place}/{MANIFEST}") is None and not _is_users(store, place):
        store.put(f"{place}/{MARKER}", PUBLISHING)
        _send(store, f"{place}/{source.entry.path}", source, base, tenure)


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
