"""Files of committed sharded checkpoints that a node keeps on its own disk, for a restart there.

`.bt_lightning/parts/<digest>/` holds the files that ranks of this node wrote, under their paths in
the checkpoint, and the manifest of the whole. It is a cache: the checkpoint is in the store, and
nothing here is listed as one. Each rank's worker adds its own files; anything may go at any time.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from bt_lightning import file_limits
from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.localdir.atomic_directory import children
from bt_lightning.localdir.read_locks import delete_unless_read
from bt_lightning.localdir.small_files import read_small_file, replace_small
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import DOT_DIR, MANIFEST, is_digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


def kept_parts_dir(root: Path) -> Path:
    """The folder of kept parts, by the digests of their manifests."""
    return root / DOT_DIR / "parts"


def keep_part(root: Path, manifest: Manifest, files: Mapping[str, Path]) -> Path:
    """Move a rank's files, by their paths in the checkpoint, to the parts of `manifest`.

    Called by the rank's worker when the store has the checkpoint. What cannot be moved is left
    out: a restart reads it from the store.

    Raises:
        OSError: the disk refused.
    """
    kept = kept_parts_dir(root) / manifest.digest
    kept.mkdir(parents=True, exist_ok=True)
    for path, file in files.items():
        target = kept / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            file.replace(target)
    replace_small(kept / MANIFEST, manifest.to_bytes(), durable=False)
    return kept


def find_kept_part(root: Path, manifest: Manifest) -> Path | None:
    """Where this node keeps files of a checkpoint; None if it keeps none. They are unverified."""
    kept = kept_parts_dir(root) / manifest.digest
    return kept if kept.is_dir() else None


def kept_manifests(root: Path) -> dict[Path, Manifest | None]:
    """The folders of kept parts, with their manifests; None where that is missing or damaged.

    Raises:
        OSError: the disk refused.
    """
    return {kept: _manifest(kept) for kept in children(kept_parts_dir(root))}


def _manifest(kept: Path) -> Manifest | None:
    try:
        data = read_small_file(kept / MANIFEST, file_limits.MANIFEST)
        manifest = Manifest.from_bytes(data, str(kept))
    except (FileNotFoundError, NotADirectoryError, CheckpointCorruptError):
        return None
    return manifest if manifest.digest == kept.name and is_digest(kept.name) else None


def drop_kept_parts(root: Path, keep: Iterable[str] = ()) -> int:
    """Delete the kept parts of all checkpoints but those with the digests `keep`; return how many.

    Those that a reader holds stay for now.

    Raises:
        OSError: the disk refused.
    """
    stay = set(keep)
    went = 0
    for kept in children(kept_parts_dir(root)):
        if kept.name not in stay and not kept.is_symlink() and kept.is_dir():
            went += delete_unless_read(kept, root)
    return went


def newest_kept(root: Path) -> Manifest | None:
    """The manifest of the newest checkpoint of which this node keeps files."""
    found = [manifest for manifest in kept_manifests(root).values() if manifest is not None]
    return max(found, key=lambda manifest: manifest.order, default=None)
