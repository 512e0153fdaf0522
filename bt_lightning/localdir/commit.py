"""The commit of a checkpoint on the local disk: files, manifest, rename, in that order."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointExistsError
from bt_lightning.layout import DOT_DIR, MANIFEST
from bt_lightning.localdir.atomic_directory import publish_directory, temporary
from bt_lightning.localdir.fsync import sync_directory, write_file
from bt_lightning.localdir.local_checkpoints import manifest_directories
from bt_lightning.localdir.small_files import replace_small

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from bt_lightning.manifest import FileEntry, Manifest

    Pieces = Iterable[memoryview | bytes]
    Writer = Callable[[Path, str], FileEntry]


def commit(
    final: Path,
    root: Path,
    files: Mapping[str, Callable[[], Pieces]],
    describe: Callable[[tuple[FileEntry, ...]], Manifest],
) -> Manifest:
    """`commit_files` of functions that yield the bytes of each file."""

    def writer(pieces: Callable[[], Pieces]) -> Writer:
        return lambda target, path: write_file(target, path, pieces())

    return commit_files(final, root, {path: writer(p) for path, p in files.items()}, describe)


def commit_files(
    final: Path,
    root: Path,
    files: Mapping[str, Writer],
    describe: Callable[[tuple[FileEntry, ...]], Manifest],
) -> Manifest:
    """Make the directory `final` a committed checkpoint, or leave no trace of the try.

    `files` maps paths inside the checkpoint to functions that write the file at a given place, make
    its bytes durable, and describe it; `describe` turns what was written into the manifest. When
    this returns, all of it survives a power cut.

    Raises:
        OSError: the disk refused (`errno` says why); what was at `final` before is untouched.
        CheckpointExistsError: `final` lies in another checkpoint, or others lie in it.
    """
    _refuse_nesting(final, root)
    with temporary(root) as built:
        entries = []
        for path, write in files.items():
            target = built / path
            target.parent.mkdir(parents=True, exist_ok=True)
            entries.append(write(target, path))
        for folder in {parent for path in files for parent in PurePosixPath(path).parents}:
            sync_directory(built / folder)
        manifest = describe(tuple(entries))
        write_file(built / MANIFEST, MANIFEST, [manifest.to_bytes()])
        publish_directory(built, final, root)
    return manifest


def _refuse_nesting(final: Path, root: Path) -> None:
    """A directory that is replaced or deleted whole must hold one checkpoint only."""
    outer = next((p for p in final.parents if root in p.parents and (p / MANIFEST).exists()), None)
    if outer is None and (final / MANIFEST).exists():
        return
    inner = next(iter(manifest_directories(final)), None) if final.is_dir() else None
    if outer or inner:
        msg = f"{final} cannot become a checkpoint: {outer or inner} is one, and they may not nest"
        raise CheckpointExistsError(msg)


def write_hint(root: Path, checkpoint_id: str, step: int) -> None:
    """Note the newest checkpoint in `latest.json`: a hint for people, which nothing here trusts."""
    said = json.dumps({"checkpoint": checkpoint_id, "step": step}) + "\n"
    replace_small(root / DOT_DIR / "latest.json", said.encode("ascii"), durable=False)
