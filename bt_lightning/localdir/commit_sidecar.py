"""Commit a checkpoint that another program wrote: digests of its files, then a sidecar."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointNotFoundError
from bt_lightning.localdir.atomic_directory import (
    delete_directory,
    make_trash,
    publish_directory,
    temporary,
)
from bt_lightning.localdir.digest import READ_BYTES, Hasher
from bt_lightning.localdir.find_job_files import Stamp
from bt_lightning.localdir.fsync import make_directories, sync_directory, write_file
from bt_lightning.localdir.no_symlinks import READ
from bt_lightning.localdir.sidecars import (
    CONTENT,
    changed_file,
    is_sidecar,
    read_content,
    sidecar_of,
)
from bt_lightning.path_layout import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.localdir.sidecars import ForeignContent
    from bt_lightning.manifest import Manifest


def digest_at_rest(
    folder: Path,
    path: str,
    stamp: Stamp,
    check: Callable[[], None] = lambda: None,
    *,
    durable: bool = True,
) -> FileEntry:
    """Make the file durable and read it; `check` is called between blocks, and may raise.

    Raises:
        CheckpointNotFoundError: it has not that stamp, or not any more.
        OSError: the disk refused.
    """
    hasher, buffer = Hasher(), memoryview(bytearray(READ_BYTES))
    try:
        descriptor = os.open(folder / path, READ)
    except OSError as error:
        raise _changed(folder / path) from error
    try:
        if durable:
            os.fsync(descriptor)
        while count := os.readv(descriptor, [buffer]):
            hasher.update(buffer[:count])
            check()
        if Stamp.of(os.fstat(descriptor)) != stamp:
            raise _changed(folder / path)
    finally:
        os.close(descriptor)
    return hasher.entry(path)


def commit_sidecar(root: Path, manifest: Manifest, content: ForeignContent) -> Path:
    """Write the sidecar of a checkpoint, in place of an older one, and durably; return it.

    Called in the worker.

    Raises:
        CheckpointNotFoundError: a file changed since its digest was made.
        OSError: the disk refused.
    """
    final = sidecar_of(root, manifest.checkpoint_id)
    make_directories(final.parent)
    sync_directory(root / content.folder)
    with temporary(root) as built:
        write_file(built / CONTENT, CONTENT, [json.dumps(content.to_json()).encode()])
        write_file(built / MANIFEST, MANIFEST, [manifest.to_bytes()])
        if (path := changed_file(root, content)) is not None:
            raise _changed(root / content.folder / path)
        publish_directory(built, final, root)
    return final


def delete_foreign(sidecar: Path, root: Path, digest: str) -> bool:
    """Delete a checkpoint that another program wrote, if it has that digest; whether this did.

    Only the files of its content go, and folders that are empty then: never its neighbours.

    Raises:
        CheckpointCorruptError, OSError: the sidecar, or the disk.
    """
    assert is_sidecar(sidecar), sidecar
    content = read_content(sidecar)
    make_trash(root)
    if not delete_directory(sidecar, root, digest):
        return False
    delete_content(root, content)
    return True


def delete_content(root: Path, content: ForeignContent) -> None:
    """Delete the files that have their stamps, and folders that are empty then.

    Raises:
        OSError: the disk refused.
    """
    folder = root / content.folder
    for path, stamp in content.stamps.items():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if Stamp.of(os.lstat(folder / path)) == stamp:
                (folder / path).unlink()
    inner = {parent for path in content.stamps for parent in (folder / path).parents}
    for each in sorted(inner, key=lambda one: len(one.parts), reverse=True):
        if each != root and root in each.parents and (each == folder or folder in each.parents):
            with contextlib.suppress(OSError):  # it holds something else
                if not content.file:
                    each.rmdir()


def _changed(file: Path) -> CheckpointNotFoundError:
    return CheckpointNotFoundError(f"{file} changed while its digest was made")
