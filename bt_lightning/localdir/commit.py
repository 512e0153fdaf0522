"""Commit a checkpoint on the local disk: write files, then the manifest, then rename."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointExistsError
from bt_lightning.localdir.atomic_directory import publish_directory, temporary
from bt_lightning.localdir.fsync import sync_folders, write_file
from bt_lightning.localdir.list_and_verify_checkpoints import manifest_directories
from bt_lightning.localdir.small_files import replace_small
from bt_lightning.path_layout import DOT_DIR, MANIFEST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.manifest import Manifest

    Pieces = Iterable[memoryview | bytes]
    Writer = Callable[[Path, str], FileEntry]


def commit(
    final: Path,
    root: Path,
    files: Mapping[str, Callable[[], Pieces]],
    describe: Callable[[tuple[FileEntry, ...]], Manifest],
) -> Manifest:
    """Call `commit_files` with files given as functions that yield their bytes."""

    def writer(pieces: Callable[[], Pieces]) -> Writer:
        return lambda target, path: write_file(target, path, pieces())

    return commit_files(final, root, {path: writer(p) for path, p in files.items()}, describe)


def commit_files(
    final: Path,
    root: Path,
    files: Mapping[str, Writer],
    describe: Callable[[tuple[FileEntry, ...]], Manifest],
) -> Manifest:
    """Commit a checkpoint as the directory `final`, or leave nothing behind.

    `files` maps paths in the checkpoint to functions that write the file at a given path, make it
    durable, and return its manifest entry; `describe` makes the manifest from the entries. When
    this returns, the checkpoint survives a power cut. Called by the worker, or by the training
    thread where there is no memory for an arena.

    Raises:
        OSError: the disk refused (`errno` says why); an existing `final` is untouched.
        CheckpointExistsError: `final` lies inside another checkpoint, or another one inside it.
    """
    refuse_nesting(final, root)
    with temporary(root) as built:
        entries = []
        for path, write in files.items():
            target = built / path
            target.parent.mkdir(parents=True, exist_ok=True)
            entries.append(write(target, path))
        sync_folders(built, files)
        manifest = describe(tuple(entries))
        write_file(built / MANIFEST, MANIFEST, [manifest.to_bytes()])
        publish_directory(built, final, root)
    return manifest


def refuse_nesting(final: Path, root: Path) -> None:
    """Refuse nested checkpoints: a directory is replaced or deleted as a whole.

    Raises:
        CheckpointExistsError: `final` lies inside another checkpoint, or another one inside it.
    """
    outer = next((p for p in final.parents if root in p.parents and (p / MANIFEST).exists()), None)
    if outer is None and (final / MANIFEST).exists():
        return
    inner = next(iter(manifest_directories(final)), None) if final.is_dir() else None
    if outer or inner:
        msg = f"{final} cannot become a checkpoint: {outer or inner} is one, and they may not nest"
        raise CheckpointExistsError(msg)


def write_hint(root: Path, checkpoint_id: str, step: int) -> None:
    """Write the newest checkpoint to `latest.json`: a hint for people that no code reads."""
    text = json.dumps({"checkpoint": checkpoint_id, "step": step}) + "\n"
    replace_small(root / DOT_DIR / "latest.json", text.encode("ascii"), durable=False)
