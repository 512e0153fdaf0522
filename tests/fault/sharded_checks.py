"""What the run came to that nobody killed, what a killed one has in its place, and figures."""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, read_manifest, verify
from bt_lightning.path_layout import DOT_DIR, MANIFEST, STATE, TREE

if TYPE_CHECKING:
    from pathlib import Path

    from bt_lightning.localdir.list_and_verify_checkpoints import LocalCheckpoint

CONSTANT = "state_dict.scale"
"""The one tensor that no step changes."""


@dataclass(frozen=True)
class Reference:
    """What the run came to that nobody killed."""

    files: dict[int, dict[str, str]]
    """SHA-256 of each file of each checkpoint, by step and path."""
    samples: list[dict[int, list[int]]]
    """By rank: what each step trained on."""
    ends: list[dict[str, Any]]
    """By rank: digest of its part of weights and optimizer states, learning rate, step."""


@dataclass
class Figures:
    """What befell trainings, counted."""

    kills: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    """How far the save was that a kill was aimed at, behind the kill."""
    trainings: int = 0
    starts: int = 0
    resumed: int = 0
    """Starts that went on from a checkpoint."""
    read: int = 0
    """Checkpoints that were read whole and compared, in all checks."""
    disks: int = 0
    """Disks of nodes that were lost."""
    slowest_end_s: float = 0.0
    """Longest time that the other ranks took to end behind a kill."""

    def add(self, other: Figures) -> None:
        slowest = max(self.slowest_end_s, other.slowest_end_s)
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        self.slowest_end_s = slowest


def sums_of(one: LocalCheckpoint) -> dict[str, str]:
    """SHA-256 of what each file of a checkpoint says, by path.

    What says how often it is saved, and of which start it is, is left out: the state of
    `ModelCheckpoint`, which has the file of tensors that are no shards for its own, and the
    arguments of the start.
    """
    found = {}
    for entry in one.manifest.files:
        data = (one.path / entry.path).read_bytes()
        if entry.path == TREE:
            whole = json.loads(data)
            del whole["tree"]["callbacks"], whole["tree"]["bt_lightning"]["origin"]
            data = json.dumps(whole, sort_keys=True).encode()
        if entry.path != STATE:
            found[entry.path] = hashlib.sha256(data).hexdigest()
    return found


def check_steps_differ(place: Path) -> None:
    """A tensor of another step would be seen: no two steps have the same bytes of any of them."""
    seen: dict[tuple[str, str], list[bytes]] = {}
    for one in list_committed(place).found:
        for path in one.path.glob("shard-*.safetensors"):
            data = path.read_bytes()
            (size,) = struct.unpack("<Q", data[:8])
            header = json.loads(data[8 : 8 + size])
            header.pop("__metadata__", None)
            for name, entry in header.items():
                begin, end = (8 + size + at for at in entry["data_offsets"])
                if end > begin and name != CONSTANT:
                    seen.setdefault((path.name, name), []).append(data[begin:end])
    assert seen
    for where, values in seen.items():
        assert len(values) > 1, where
        assert len(set(values)) == len(values), f"{where} is the same at two steps"


def check_place(place: Path, reference: Reference) -> set[int]:
    """All that is committed in a directory or a store is whole and of one step; their steps.

    Workers may be at work there.
    """
    if not place.exists():
        return set()
    found, refused, _ = list_committed(place)
    assert not refused, f"lost: {refused}"
    steps = set()
    for one in found:
        try:
            verify(one.path)
            sums = sums_of(one)
        except (CheckpointNotFoundError, FileNotFoundError):
            assert not is_there(one.path, one.manifest.digest), f"lost: {one.path}"
            continue  # a worker replaced or deleted it
        wanted = reference.files[one.manifest.step]
        if sums != wanted and is_there(one.path, one.manifest.digest):
            other = {name for name in {*sums, *wanted} if sums.get(name) != wanted.get(name)}
            msg = (
                f"mixed or torn: {one.path} has not the files of step {one.manifest.step}: {other}"
            )
            raise AssertionError(msg)
        steps.add(one.manifest.step)
    return steps


def is_there(folder: Path, digest: str) -> bool:
    """Whether this generation of a checkpoint is committed there."""
    with contextlib.suppress(CheckpointNotFoundError, CheckpointCorruptError):
        return read_manifest(folder).digest == digest
    return False


def check_nothing_partial(root: Path) -> None:
    """Every folder of a checkpoint directory that is no dot folder is a checkpoint."""
    for folder in root.glob("[!.]*"):
        if folder.is_dir() and not (folder / MANIFEST).exists():
            assert not folder.exists(), f"partial: {folder}"


def left_over(root: Path) -> list[Path]:
    """Temporaries below a checkpoint directory that nobody works at any more."""
    return [path for name in ("tmp", "trash") for path in (root / DOT_DIR / name).glob("*")]
