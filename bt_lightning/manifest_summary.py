"""A manifest as a listing needs it: all facts, but of the files only number, sizes and digest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from bt_lightning.block_digests import hex_digest
from bt_lightning.errors import CheckpointNotFoundError
from bt_lightning.file_entries import files_from_json, files_to_json
from bt_lightning.json_values import count_of
from bt_lightning.late_files import KnownOfFiles, LateFiles, is_named
from bt_lightning.manifest import Manifest, facts_to_json, manifest_from_json, with_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bt_lightning.file_entries import FileEntry

MOST_NAMED: Final = 64
"""Entries in a summary; a checkpoint with more files of such names has none."""


def summary_of(manifest: Manifest) -> dict[str, Any] | None:
    """The summary, for JSON; None if the manifest can have none."""
    named = [entry for entry in manifest.files if is_named(entry.path)]
    if len(named) > MOST_NAMED:
        return None
    return {
        "id": manifest.checkpoint_id,
        "generation": manifest.generation,
        **facts_to_json(manifest),
        "digest": manifest.digest,
        "number": len(manifest.files),
        "size": manifest.size,
        "block_bytes": manifest.block_bytes,
        "named": files_to_json(named, packed=True),
    }


def listed_manifest(
    summary: dict[str, Any], read: Callable[[], Manifest], *, distant: bool
) -> Manifest:
    """The manifest that `summary_of` was given; its files are those of `read()`, when asked for.

    `distant` says whether that asks a store.
    What `read` returns must have the same digest, or `CheckpointNotFoundError` is raised then.

    Raises:
        ValueError: it is no summary.
    """
    try:
        block_bytes = summary["block_bytes"]
        digest = hex_digest(summary["digest"])
        named = files_from_json(summary["named"], packed=True, block_bytes=block_bytes)
        known = KnownOfFiles(
            number=count_of(summary["number"], least=len(named)),
            size=count_of(summary["size"], least=sum(entry.size for entry in named)),
            block_bytes=block_bytes,
            named=named,
        )
        files = LateFiles(known, lambda: _files_of(read(), digest), distant=distant)
        manifest = manifest_from_json(summary, files)
    except (ArithmeticError, AttributeError, KeyError, TypeError) as error:
        msg = f"this is no summary of a manifest: {type(error).__name__} {error}"
        raise ValueError(msg) from error
    return with_digest(manifest, digest)


def _files_of(manifest: Manifest, digest: str) -> Sequence[FileEntry]:
    if manifest.digest != digest:
        msg = f"{manifest.checkpoint_id} was replaced since it was listed: list again"
        raise CheckpointNotFoundError(msg)
    return manifest.files
