"""Which checkpoint a run goes on from: one decision, with the list of all that was considered.

Order: the newest committed and verified checkpoint of this job, on disk or in the store; else the
newest in the load directory. One that fails verification is named, left where it is, and the next
older one is taken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError, StoreError
from bt_lightning.localdir.directory_walk import walk
from bt_lightning.localdir.local_checkpoints import list_committed, verify
from bt_lightning.restore.load_checkpoint import load_file

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from bt_lightning.localdir.local_checkpoints import LocalCheckpoint
    from bt_lightning.manifest import Manifest

_RANK = re.compile(r"rank-\d+")


@dataclass(frozen=True, slots=True)
class Stored:
    """A committed checkpoint of this job in the store."""

    folder: str
    manifest: Manifest


@dataclass(slots=True)
class Search:
    """The outcome of a search."""

    path: str | None = None
    """What to load: a checkpoint directory or a stock file; None to start fresh."""
    digest: str | None = None
    """Manifest digest of the chosen checkpoint; None for a stock file."""
    step: int | None = None
    own: bool = False
    """Whether it is this job's own, rather than one that was laid into the load directory."""
    damaged: bool = False
    """Whether one of this job's own checkpoints could not be used."""
    considered: list[str] = field(default_factory=list)
    """One line for each checkpoint that was looked at, in order, with the verdict."""

    def describe(self) -> str:
        """The considered checkpoints as text, one a line."""
        return "\n".join(f"  - {line}" for line in self.considered) or "  (none)"

    def check(self) -> None:
        """Raise `CheckpointCorruptError` if a fresh start would hide that a job lost all it had."""
        if self.path is None and self.damaged:
            msg = (
                "none of this job's checkpoints can be used, and starting afresh could hide that."
                f" Considered:\n{self.describe()}\nRepair one, or start with resume='never'"
            )
            raise CheckpointCorruptError(msg)


@dataclass(frozen=True, slots=True)
class _Candidate:
    order: tuple[int, int, str]
    place: str
    """Path, or a description of the place in the store."""
    manifest: Manifest | None
    """None for a stock file."""
    stored: Stored | None = None


def find_own(
    root: Path,
    stored: Sequence[Stored],
    fetch: Callable[[Stored], str],
    found: Search,
    others: Sequence[tuple[int, str]] = (),
) -> bool:
    """Choose among this job's checkpoints; `fetch` brings one from the store and verifies it.

    `others` are steps and paths of those that the job has elsewhere, known to be whole.
    """
    local, refused = _look(root, found)
    found.damaged = found.damaged or refused
    candidates = [_Candidate(c.manifest.order, str(c.path), c.manifest) for c in local]
    candidates += [_Candidate(s.manifest.order, f"store {s.folder}", s.manifest, s) for s in stored]
    candidates += [_Candidate((step, 0, ""), path, None) for step, path in others]
    candidates.sort(key=lambda c: (c.order, c.stored is None), reverse=True)  # the disk is nearer
    return _choose(candidates, fetch, found, own=True, warm=False)


def find_loaded(
    load_dir: Path, node_rank: int, found: Search, *, weights_only: bool | None, warm: bool = False
) -> bool:
    """Choose in `$BT_LOAD_CHECKPOINT_DIR`: `<job>/rank-N/<name>`, `rank-N/<name>`, or bare.

    Stock `.ckpt` files count as well. Folders of other nodes (`rank-K`) are left out, and, unless
    `warm`, checkpoints that hold weights only.
    """
    if not load_dir.is_dir():
        found.considered.append(f"{load_dir}: refused, no such directory")
        return False
    local, _ = _look(load_dir, found)
    candidates = [_Candidate(c.manifest.order, str(c.path), c.manifest) for c in local]
    for file in _stock_files(load_dir, {str(c.path) for c in local}):
        try:
            step = stock_step(file, weights_only=weights_only, warm=warm)
        except Exception as error:  # noqa: BLE001 - torch.load raises anything
            reason = str(error).partition("\n")[0]
            found.considered.append(f"{file}: refused, {type(error).__name__}: {reason}")
        else:
            candidates.append(_Candidate((step, 0, ""), str(file), None))
    candidates.sort(key=lambda c: c.order, reverse=True)
    mine = []
    for candidate in candidates:
        parts = Path(candidate.place).relative_to(load_dir).parts
        rank = next((part for part in parts if _RANK.fullmatch(part)), None)
        if rank in {None, f"rank-{node_rank}"}:
            mine.append(candidate)
        else:
            found.considered.append(f"{candidate.place}: refused, it belongs to {rank}")
    return _choose(mine, None, found, own=False, warm=warm)


def _look(root: Path, found: Search) -> tuple[list[LocalCheckpoint], bool]:
    """What is committed there, and whether there is more that cannot be used, which is noted."""
    listed = list_committed(root)
    found.considered += [f"{item.place}: refused, {item.reason}" for item in listed.refused]
    found.considered += [item.reason for item in listed.unread]
    return listed.found, bool(listed.refused)


def _stock_files(load_dir: Path, committed: set[str]) -> list[Path]:
    """The `.ckpt` files below `load_dir` that lie in no committed checkpoint, sorted."""
    files: list[Path] = []

    def see(entry: os.DirEntry[str]) -> None:
        if entry.name.endswith(".ckpt") and entry.is_file():
            files.append(Path(entry.path))

    walk(str(load_dir), committed.__contains__, lambda *_: None, see)
    return sorted(files)


def _choose(
    candidates: Sequence[_Candidate],
    fetch: Callable[[Stored], str] | None,
    found: Search,
    *,
    own: bool,
    warm: bool,
) -> bool:
    """Take the first candidate that holds what is wanted and is whole."""
    for candidate in candidates:
        place, manifest = candidate.place, candidate.manifest
        if manifest is not None and not manifest.resumable and not warm:
            found.considered.append(f"{place}: refused, it holds weights only")
            continue
        try:
            if candidate.stored is not None and fetch is not None:
                path = fetch(candidate.stored)
            else:
                path = place
                if manifest is not None:
                    verify(Path(place))
        except StoreError:
            raise  # an outage is no damage: an older checkpoint would repeat work
        except (CheckpointCorruptError, CheckpointNotFoundError, OSError) as error:
            named = isinstance(error, CheckpointCorruptError | CheckpointNotFoundError)
            if candidate.stored is not None and not named:
                raise  # this disk, not the checkpoint: it is full, say
            found.considered.append(f"{place}: refused, {error}")
            found.damaged = found.damaged or own
            continue
        found.considered.append(f"{place}: step {candidate.order[0]}, chosen")
        found.path, found.step, found.own = path, candidate.order[0], own
        found.digest = manifest.digest if manifest is not None else None
        return True
    return False


def stock_step(file: Path, *, weights_only: bool | None, warm: bool = False) -> int:
    """The `global_step` of a stock Lightning checkpoint file.

    Raises:
        CheckpointCorruptError: it holds none. Whatever `torch.load` raises for a file it refuses.
    """
    return step_of(load_file(file, weights_only=weights_only), file, warm=warm)


def step_of(checkpoint: object, place: Path | str, *, warm: bool = False) -> int:
    """The `global_step` of a Lightning checkpoint that was loaded from `place`.

    Raises:
        CheckpointCorruptError: it holds none; or, unless `warm`, nothing to train on with.
    """
    step = checkpoint.get("global_step") if isinstance(checkpoint, dict) else None
    if not isinstance(step, int):
        msg = f"{place} is no Lightning checkpoint: it has no global_step"
        raise CheckpointCorruptError(msg)
    if not warm and isinstance(checkpoint, dict) and "optimizer_states" not in checkpoint:
        msg = "it holds weights only"
        raise CheckpointCorruptError(msg)
    return step
