"""The entries of a manifest's files: sizes and digests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.block_digests import BlockDigests, hex_digest, hex_digests
from bt_lightning.json_values import count_of, typed
from bt_lightning.path_layout import MANIFEST, check_member, folders_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BLOCK_BYTES: Final = 4 * 1024 * 1024
"""The greatest `FileEntry.block_bytes`. It is a multiple of each."""
_BLOCK_SIZES: Final = tuple(BLOCK_BYTES >> shift for shift in range(11))
FILE_KEYS: Final = frozenset(["path", "size", "xxh3_128", "blocks"])
"""The keys of an entry in JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of a checkpoint."""

    path: str
    """Posix path inside the checkpoint's directory."""
    size: int
    """Bytes."""
    xxh3_128: str
    """XXH3-128 (seed 0) of the whole file, 32 lower-case hex characters."""
    blocks: Sequence[str]
    """XXH3-128 of each block of the file, in order; empty for an empty file."""
    block_bytes: int = BLOCK_BYTES
    """Size of a block, a power of two; the last one of a file may be shorter."""


def files_to_json(files: Iterable[FileEntry], *, packed: bool) -> list[dict[str, Any]]:
    """The entries as a manifest and a part record have them; `packed`: blocks as one text."""
    return [
        {
            "path": entry.path,
            "size": entry.size,
            "xxh3_128": entry.xxh3_128,
            "blocks": BlockDigests.of(entry.blocks).packed if packed else list(entry.blocks),
        }
        for entry in files
    ]


def files_from_json(
    items: list[dict[str, Any]], *, packed: bool, block_bytes: int = BLOCK_BYTES
) -> tuple[FileEntry, ...]:
    """What `files_to_json` was given; each path stays inside the checkpoint.

    Raises:
        CheckpointCorruptError: a path leaves the checkpoint.
        AttributeError, KeyError, TypeError, ValueError: it is none of that.
    """
    if typed(int, block_bytes) not in _BLOCK_SIZES:
        msg = f"block_bytes is {block_bytes!r}, expected a power of two up to {BLOCK_BYTES}"
        raise ValueError(msg)
    files = tuple(_entry(item, block_bytes, packed=packed) for item in items)
    paths = {entry.path for entry in files}
    if len(paths) != len(files):
        msg = "two entries have one path"
        raise ValueError(msg)
    folders = {folder for path in paths if "/" in path for folder in folders_of(path)}
    if folders & (paths | {MANIFEST}):
        msg = "one path is a file and a folder"
        raise ValueError(msg)
    return files


def _entry(item: dict[str, Any], block_bytes: int, *, packed: bool) -> FileEntry:
    size = count_of(item["size"])
    blocks: Sequence[str] = (
        BlockDigests.unpack(typed(str, item["blocks"])) if packed else hex_digests(item["blocks"])
    )
    if len(blocks) != -(-size // block_bytes):
        msg = f"{item['path']!r} has {size} bytes and {len(blocks)} blocks"
        raise ValueError(msg)
    path = check_member(item["path"])
    whole = hex_digest(item["xxh3_128"])
    return FileEntry(path=path, size=size, xxh3_128=whole, blocks=blocks, block_bytes=block_bytes)
