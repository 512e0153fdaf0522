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

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.localdir.committed import list_committed, verify
from bt_lightning.restore.load import load_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bt_lightning.manifest import Manifest

_RANK = re.compile(r"rank-\d+")


@dataclass(frozen=True, slots=True)
class Stored:
    """A committed checkpoint of this job in the store."""

    folder: str
    manifest: Manifest


@dataclass(slots=True)
class Found:
    """The outcome of a search."""

    path: str | None = None
    """What to load: a checkpoint directory or a stock file; None to start fresh."""
    digest: str | None = None
    """Manifest digest of the chosen checkpoint; None for a stock file."""
    step: int | None = None
    own: bool = False
    """Whether it is this job's own, rather than one that was laid into the load directory."""
    considered: list[str] = field(default_factory=list)
    """One line for each checkpoint that was looked at, in order, with the verdict."""

    def describe(self) -> str:
        """The considered checkpoints as text, one a line."""
        return "\n".join(f"  - {line}" for line in self.considered) or "  (none)"


def find_own(
    root: Path, stored: Sequence[Stored], fetch: Callable[[Stored], str], found: Found
) -> bool:
    """Choose among this job's checkpoints; `fetch` brings one from the store and verifies it."""
    local, refused = list_committed(root)
    found.considered += [f"{item.place}: refused, {item.reason}" for item in refused]
    candidates = [(c.manifest.order, 1, str(c.path), c.manifest, None) for c in local]
    candidates += [(s.manifest.order, 0, f"store {s.folder}", s.manifest, s) for s in stored]
    for _, _, place, manifest, remote in sorted(candidates, key=lambda c: c[:2], reverse=True):
        try:
            if remote is None:
                verify(Path(place))
            path = place if remote is None else fetch(remote)
        except (CheckpointCorruptError, CheckpointNotFoundError) as error:
            found.considered.append(f"{place}: refused, {error}")
            continue
        found.considered.append(f"{place}: step {manifest.step}, chosen")
        found.path, found.digest, found.step, found.own = path, manifest.digest, manifest.step, True
        return True
    return False


def find_loaded(load_dir: Path, node_rank: int, found: Found, *, weights_only: bool | None) -> bool:
    """Choose in `$BT_LOAD_CHECKPOINT_DIR`: `<job>/rank-N/<name>`, `rank-N/<name>`, or bare.

    Stock `.ckpt` files count as well. Folders of other nodes (`rank-K`) are left out.
    """
    if not load_dir.is_dir():
        found.considered.append(f"{load_dir}: refused, no such directory")
        return False
    local, refused = list_committed(load_dir)
    found.considered += [f"{item.place}: refused, {item.reason}" for item in refused]
    candidates = [(c.manifest.order, c.path, c.manifest) for c in local]
    for file in sorted(load_dir.rglob("*.ckpt")):
        if not file.is_file() or any(file.is_relative_to(c.path) for c in local):
            continue
        try:
            step = stock_step(file, weights_only=weights_only)
        except Exception as error:  # noqa: BLE001 - torch.load raises anything for a damaged file
            reason = str(error).partition("\n")[0]
            found.considered.append(f"{file}: refused, {type(error).__name__}: {reason}")
            continue
        candidates.append(((step, 0, ""), file, None))
    for order, path, manifest in sorted(candidates, key=lambda c: c[0], reverse=True):
        ranks = [part for part in path.relative_to(load_dir).parts if _RANK.fullmatch(part)]
        if ranks and ranks[0] != f"rank-{node_rank}":
            found.considered.append(f"{path}: refused, it belongs to {ranks[0]}")
            continue
        try:
            if manifest is not None:
                verify(path)
        except (CheckpointCorruptError, CheckpointNotFoundError) as error:
            found.considered.append(f"{path}: refused, {error}")
            continue
        found.considered.append(f"{path}: step {order[0]}, chosen")
        found.path, found.step = str(path), order[0]
        found.digest = manifest.digest if manifest is not None else None
        return True
    return False


def stock_step(file: Path, *, weights_only: bool | None) -> int:
    """The `global_step` of a stock Lightning checkpoint file.

    Raises:
        CheckpointCorruptError: it holds none. Whatever `torch.load` raises for a file it refuses.
    """
    checkpoint = load_file(file, weights_only=weights_only)
    step = checkpoint.get("global_step") if isinstance(checkpoint, dict) else None
    if not isinstance(step, int):
        msg = f"{file} is no Lightning checkpoint: it has no global_step"
        raise CheckpointCorruptError(msg)
    return step
