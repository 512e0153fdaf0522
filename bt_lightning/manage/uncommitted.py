"""Checkpoints of other programs that no worker has committed: recognised as they lie.

Only small files are read to list them. Digests of the large ones are made when a command needs
them: `with_digests`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from bt_lightning.checkpoint_formats.results import Incomplete, Whole
from bt_lightning.errors import CheckpointNotFoundError
from bt_lightning.file_entries import FileEntry
from bt_lightning.localdir.commit_sidecar import digest_at_rest
from bt_lightning.localdir.find_foreign import Candidate, find_foreign
from bt_lightning.localdir.find_job_files import Stamp, find_job_files
from bt_lightning.localdir.foreign_facts import facts_of_foreign
from bt_lightning.localdir.sidecars import ForeignContent
from bt_lightning.path_layout import DOT_DIR

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from bt_lightning.manifest import Manifest

_SMALL_BYTES: Final = 1_000_000
"""Files of up to this size have their digest in a listing."""
_REST_NS: Final = 2_000_000_000
NO_DIGEST: Final = "0" * 32


@dataclass(frozen=True, slots=True)
class Uncommitted:
    """One whole checkpoint that has no manifest yet."""

    candidate: Candidate
    manifest: Manifest
    """Its large files have `NO_DIGEST`, and no blocks."""

    def content(self) -> ForeignContent:
        """Its files, as a sidecar would name them."""
        paths = [entry.path for entry in self.manifest.files]
        folder, file = self.candidate.place
        stamps = {path: self.candidate.stamps[path] for path in paths}
        return ForeignContent(folder=folder, file=file, stamps=stamps)


def find_uncommitted(
    root: Path, committed: Collection[tuple[str, str]], taken: Collection[str] = ()
) -> tuple[list[Uncommitted], list[str]]:
    """Those below `root` but for the places that are `committed`; and why others are left out.

    `taken` are ids of checkpoints. Where a worker has been, times of files tell a broken save.
    """
    managed = (root / DOT_DIR).is_dir()
    known: dict[tuple[str, str], Whole | Incomplete | None] = {}

    def look(candidate: Candidate) -> Whole | Incomplete | None:
        if candidate.place not in known:
            known[candidate.place] = _look(root, candidate, managed=managed)
        return known[candidate.place]

    found: list[Uncommitted] = []
    left_out: list[str] = []
    ids = set(taken)
    for candidate in find_foreign(find_job_files(root), lambda one: look(one) is None, root.name):
        verdict = look(candidate)
        if candidate.place in committed or verdict is None:
            continue
        if isinstance(verdict, Incomplete):
            if verdict.kept_back:
                name = "/".join(part for part in candidate.place if part) or str(root)
                left_out.append(f"{name} is not whole ({verdict.format}): {verdict.reason}")
            continue
        one = _uncommitted(root, candidate, verdict, ids)
        if one is not None:
            ids.add(one.manifest.checkpoint_id)
            found.append(one)
    return found, left_out


def find_file(folder: Path, name: str) -> tuple[list[Uncommitted], list[str]]:
    """The file `name` of `folder`, if it is a checkpoint by itself; else why it is none.

    Raises:
        OSError: it cannot be read.
    """
    stamp = Stamp.of((folder / name).stat())
    candidate = Candidate(folder="", file=name, stamps={name: stamp})
    verdict = _look(folder, candidate, managed=False)
    if isinstance(verdict, Whole):
        one = _uncommitted(folder, candidate, verdict, ())
        return ([one] if one is not None else []), []
    return [], [verdict.reason] if verdict is not None else []


def _look(root: Path, candidate: Candidate, *, managed: bool) -> Whole | Incomplete | None:
    newest = max(stamp.mtime_ns for stamp in candidate.stamps.values())
    if managed and time.time_ns() - newest < _REST_NS:
        files = tuple(candidate.stamps)
        return Incomplete(format="changing", reason="it is being written", files=files)
    try:
        return candidate.recognize(root, settled=not managed, copied=not managed)
    except OSError as error:
        return Incomplete(format="changing", reason=str(error), files=tuple(candidate.stamps))


def _uncommitted(
    root: Path, candidate: Candidate, whole: Whole, ids: Collection[str]
) -> Uncommitted | None:
    stamps = {path: candidate.stamps[path] for path in whole.files}
    folder, entries = root / candidate.folder, []
    for path, stamp in stamps.items():
        entry = FileEntry(path=path, size=stamp.size, xxh3_128=NO_DIGEST, blocks=())
        if stamp.size <= _SMALL_BYTES:
            try:
                entry = digest_at_rest(folder, path, stamp, durable=False)
            except (CheckpointNotFoundError, OSError):
                return None
        entries.append(entry)
    name = candidate.proposed_id(root, ids.__contains__)
    facts = facts_of_foreign(whole, stamps.values())
    return Uncommitted(candidate, facts.manifest(name, 1, tuple(entries)))


def complete_digests(
    root: Path, one: Uncommitted, on_bytes: Callable[[int], None] = lambda _: None
) -> Uncommitted:
    """The same with the digest of every file; reads the large ones once.

    Raises:
        CheckpointNotFoundError: a file changed since it was found.
        OSError: a file cannot be read.
    """
    entries = []
    for entry in one.manifest.files:
        if entry.xxh3_128 == NO_DIGEST:
            stamp = one.candidate.stamps[entry.path]
            folder = root / one.candidate.folder
            entry = digest_at_rest(folder, entry.path, stamp, durable=False)  # noqa: PLW2901
            on_bytes(entry.size)
        entries.append(entry)
    return replace(one, manifest=replace(one.manifest, files=tuple(entries)))
