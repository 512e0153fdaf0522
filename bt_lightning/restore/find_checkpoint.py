"""Chooses the checkpoint that a run resumes from, and lists every checkpoint that was considered.

Order: the newest committed and verified checkpoint of this job, on disk or in the store; otherwise
the newest in the load directory. One that fails verification is listed with the reason, stays where
it is, and the next older one is tried.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.checkpoint_formats.sharded_folders import METADATA
from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError, StoreError
from bt_lightning.localdir.directory_walk import walk
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.restore.dcp_folder import dcp_step
from bt_lightning.restore.first_read import FirstRead
from bt_lightning.restore.read_documents import load_file

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from bt_lightning.localdir.list_and_verify_checkpoints import Listed
    from bt_lightning.manifest import Manifest

_RANK = re.compile(r"rank-\d+")


@dataclass(frozen=True, slots=True)
class Stored:
    """A committed checkpoint of this job in the store."""

    folder: str
    manifest: Manifest


@dataclass(slots=True)
class Search:
    """What is searched for, and the outcome."""

    format: str | None = None
    """The layout that is searched for; None is our own."""
    verify: Callable[[Path], object] = field(default_factory=lambda: FirstRead().verify)
    """Reads what lies at a path, and raises as `FirstRead.verify`."""
    path: str | None = None
    """The checkpoint directory or stock `.ckpt` file to load; None to start fresh."""
    digest: str | None = None
    """Manifest digest of the chosen checkpoint; None for a stock file."""
    manifest: Manifest | None = None
    """Of the chosen checkpoint; None for a stock file."""
    stored: bool = False
    """Whether the chosen one came from the store."""
    step: int | None = None
    own: bool = False
    """Whether it is a checkpoint of this job, not one of the load directory."""
    damaged: bool = False
    """Whether one of this job's own checkpoints could not be used."""
    considered: list[str] = field(default_factory=list)
    """One line for each checkpoint that was considered, in order, with the verdict."""

    def describe(self) -> str:
        """The considered checkpoints as text, one per line."""
        return "\n".join(f"  - {line}" for line in self.considered) or "  (none)"

    def check(self) -> None:
        """Refuse a fresh start of a job that has checkpoints of which none can be used.

        Raises:
            CheckpointCorruptError: no checkpoint was chosen, and one of the job's own is damaged.
        """
        if self.path is None and self.damaged:
            msg = (
                "none of this job's checkpoints can be used, and starting afresh could hide that."
                f" Considered:\n{self.describe()}\nRepair one, or start with resume='never'"
            )
            raise CheckpointCorruptError(msg)


@dataclass(frozen=True, slots=True)
class _Candidate:
    order: tuple[int, int, str]
    location: str
    """The path on disk, or a description of the folder in the store."""
    manifest: Manifest | None
    """None for a stock file."""
    stored: Stored | None = None


def find_own(
    listed: Listed,
    stored: Sequence[Stored],
    fetch: Callable[[Stored], str],
    search: Search,
    others: Sequence[tuple[int, str]] = (),
) -> bool:
    """Choose among this job's checkpoints and record the choice in `search`.

    `listed` and `stored` are those of the disk and of the store; `fetch` downloads and verifies one
    from the store and returns its path. `others` are (step, path) of the job's verified checkpoints
    elsewhere. Returns whether one was chosen.
    """
    _note_refused(listed, search)
    search.damaged = search.damaged or bool(listed.refused)
    candidates = [_Candidate(c.manifest.order, str(c.path), c.manifest) for c in listed.found]
    candidates += [_Candidate(s.manifest.order, f"store {s.folder}", s.manifest, s) for s in stored]
    candidates += [_Candidate((step, 0, ""), path, None) for step, path in others]
    candidates.sort(key=lambda c: (c.order, c.stored is None), reverse=True)  # disk before store
    return _choose(candidates, fetch, search, own=True, warm=False)


def find_loaded(
    load_dir: Path, node_rank: int, search: Search, *, weights_only: bool | None, warm: bool = False
) -> bool:
    """Choose in `$BT_LOAD_CHECKPOINT_DIR` and record the choice in `search`.

    Checkpoints may be at `<job>/rank-N/<name>`, `rank-N/<name>`, or any other path; only those of
    the search's layout count, and with our own (None) what Lightning writes too. Folders of other
    nodes (`rank-K`) are refused, and so are checkpoints without training state unless `warm` (a
    start from weights). Returns whether one was chosen.
    """
    if not load_dir.is_dir():
        search.considered.append(f"{load_dir}: refused, no such directory")
        return False
    listed = list_committed(load_dir, foreign=False).of_format(search.format)
    _note_refused(listed, search)
    local = listed.found
    candidates = [_Candidate(c.manifest.order, str(c.path), c.manifest) for c in local]
    stock = _stock_files(load_dir, {str(c.path) for c in local}) if search.format is None else []
    for file in stock:
        try:
            read_step = dcp_step if file.is_dir() else stock_step
            step = read_step(file, weights_only=weights_only, warm=warm)
        except Exception as error:  # noqa: BLE001 - torch.load raises anything
            reason = str(error).partition("\n")[0]
            search.considered.append(f"{file}: refused, {type(error).__name__}: {reason}")
        else:
            candidates.append(_Candidate((step, 0, ""), str(file), None))
    candidates.sort(key=lambda c: c.order, reverse=True)
    mine = []
    for candidate in candidates:
        parts = Path(candidate.location).relative_to(load_dir).parts
        rank = next((part for part in parts if _RANK.fullmatch(part)), None)
        if rank in {None, f"rank-{node_rank}"}:
            mine.append(candidate)
        else:
            search.considered.append(f"{candidate.location}: refused, it belongs to {rank}")
    return _choose(mine, None, search, own=False, warm=warm)


def _note_refused(listed: Listed, search: Search) -> None:
    search.considered += [f"{item.place}: refused, {item.reason}" for item in listed.refused]
    search.considered += [item.reason for item in listed.unread]


def _stock_files(load_dir: Path, committed: set[str]) -> list[Path]:
    """Stock `.ckpt` files, and folders of sharded strategies, outside committed checkpoints."""
    files: list[Path] = []

    def add_stock_file(entry: os.DirEntry[str]) -> None:
        if entry.name.endswith(".ckpt") and entry.is_file():
            files.append(Path(entry.path))
        elif entry.name == METADATA and entry.is_file():
            files.append(Path(entry.path).parent)

    walk(str(load_dir), committed.__contains__, lambda *_: None, add_stock_file)
    return sorted(files)


def _choose(
    candidates: Sequence[_Candidate],
    fetch: Callable[[Stored], str] | None,
    search: Search,
    *,
    own: bool,
    warm: bool,
) -> bool:
    """Choose the first candidate that can be resumed and passes verification."""
    for candidate in candidates:
        location, manifest = candidate.location, candidate.manifest
        if manifest is not None and not manifest.resumable and not warm:
            search.considered.append(f"{location}: refused, it holds weights only")
            continue
        try:
            if candidate.stored is not None and fetch is not None:
                path = fetch(candidate.stored)
            else:
                path = location
                if manifest is not None:
                    search.verify(Path(location))
        except StoreError:
            raise  # the store is not reachable; an older checkpoint would repeat work
        except (CheckpointCorruptError, CheckpointNotFoundError, OSError) as error:
            about_checkpoint = isinstance(error, CheckpointCorruptError | CheckpointNotFoundError)
            if candidate.stored is not None and not about_checkpoint:
                raise  # the local disk failed, not the checkpoint
            search.considered.append(f"{location}: refused, {error}")
            search.damaged = search.damaged or own
            continue
        search.considered.append(f"{location}: step {candidate.order[0]}, chosen")
        search.path, search.step, search.own = path, candidate.order[0], own
        search.digest = manifest.digest if manifest is not None else None
        search.manifest, search.stored = manifest, candidate.stored is not None
        return True
    return False


def stock_step(file: Path, *, weights_only: bool | None, warm: bool = False) -> int:
    """The `global_step` of a stock Lightning checkpoint file.

    Raises:
        CheckpointCorruptError: it has none.
        Exception: whatever `torch.load` raises for a file that it cannot read.
    """
    return step_of(load_file(file, weights_only=weights_only), file, warm=warm)


def step_of(checkpoint: object, location: Path | str, *, warm: bool = False) -> int:
    """The `global_step` of a Lightning checkpoint that was loaded from `location`.

    Raises:
        CheckpointCorruptError: it has none; or, unless `warm`, it has no optimizer states.
    """
    step = checkpoint.get("global_step") if isinstance(checkpoint, dict) else None
    if not isinstance(step, int):
        msg = f"{location} is no Lightning checkpoint: it has no global_step"
        raise CheckpointCorruptError(msg)
    if not warm and isinstance(checkpoint, dict) and "optimizer_states" not in checkpoint:
        msg = "it holds weights only"
        raise CheckpointCorruptError(msg)
    return step
