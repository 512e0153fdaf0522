"""A source of weights: its files, checked, and how each of them comes to the disk."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.glob_patterns import chosen
from bt_lightning.path_layout import folders_of, safe_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

MOST_FILES: Final = 100_000
_MOST_PATH_BYTES: Final = 32 * 1024 * 1024
_SHOWN: Final = 8
_MAX_SHOWN: Final = 200


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One file of a source."""

    path: str
    """Below the mount location; empty for a source that is one file."""
    size: int
    """Bytes."""
    identity: str
    """Text that is equal for two files only if their bytes are; empty if the source cannot tell."""
    expected: Mapping[str, str] = field(default_factory=dict)
    """Digests by algorithm, as the listing tells them."""


class WeightSource(Protocol):
    """One source at one revision. `fetch` is called by several threads."""

    @property
    def name(self) -> str:
        """The URL at its revision, without secrets."""

    @property
    def large_at_once(self) -> int:
        """How many large files to fetch at a time.

        Few where `fetch` itself reads in parallel; two at least, so that the digests of one are
        computed while the next one comes.
        """

    def files(self) -> list[WeightFile]:
        """Every file of the source, unchecked; one listing."""

    def fetch(
        self, file: WeightFile, folder: Path, on_bytes: Callable[[int], object]
    ) -> tuple[Path, Mapping[str, str]]:
        """Download a file into `folder`; return its place there, and all digests that are known.

        `folder` is of this call alone, and holds what an interrupted call left there, which is used
        if it is of the same version. `on_bytes` gets the numbers of bytes that came.

        Raises `StoreError`, `CheckpointCorruptError`, `CheckpointNotFoundError` or `OSError`.
        """


def checked_files(
    name: str, files: Sequence[WeightFile], allow: Sequence[str], ignore: Sequence[str]
) -> list[WeightFile]:
    """The files that the patterns select, if each path stays below the mount location.

    Raises:
        CheckpointCorruptError: the listing has a path that leaves it, or two for one place.
        CheckpointNotFoundError: the patterns select none.
    """
    if len(files) > MOST_FILES or sum(len(file.path) for file in files) > _MOST_PATH_BYTES:
        msg = f"{name} lists more than {MOST_FILES:,} files: name a folder in it"
        raise CheckpointCorruptError(msg)
    if [file.path for file in files] == [""]:
        return list(files)
    for file in files:
        if not safe_parts(file.path) or file.size < 0:
            msg = (
                f"{name} lists {file.path[:_MAX_SHOWN]!r}, which is no path below the mount"
                " location: nothing was written"
            )
            raise CheckpointCorruptError(msg)
    found = [file for file in files if chosen(file.path, allow, ignore)]
    if not found:
        paths = ", ".join(sorted(file.path for file in files)[:_SHOWN])
        msg = f"no file of {name} is named by these patterns; it has {paths}"
        raise CheckpointNotFoundError(msg)
    _check_places(name, [file.path for file in found])
    return sorted(found, key=lambda file: file.path)


def _check_places(name: str, paths: Sequence[str]) -> None:
    """Refuse a path that is listed twice, or is a folder of another one: buckets allow it."""
    known = set(paths)
    folders = {folder for path in paths for folder in folders_of(path)}
    both = known & folders
    if len(known) < len(paths) or both:
        one = min(both) if both else Counter(paths).most_common(1)[0][0]
        what = "both as a file and as a folder" if both else "twice"
        msg = f"{name} lists {one!r} {what}: leave one out with ignore_patterns"
        raise CheckpointCorruptError(msg)
