"""What one rank's part of a save is, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bt_lightning.manifest import FileEntry, ManifestFacts


@dataclass(frozen=True, slots=True)
class SaveKey:
    """Which save this is, the same on every rank; neither a path nor a clock."""

    run: str
    """32 lower-case hex characters that rank 0 draws when the fit starts."""
    number: int
    """Number of the save, which every rank counts, from 1."""

    @property
    def folder(self) -> str:
        """The name of the folder in which the parts of this save are gathered."""
        return f"{self.run}-{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SavePart:
    """What a rank's part of a save says besides its files; made by the training process."""

    key: SaveKey
    rank: int
    world_size: int
    fingerprint: str
    """Of the structure (`Structure.fingerprint`): equal on all ranks, or nothing is committed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveHead:
    """What the whole checkpoint is; rank 0's record has it."""

    checkpoint_id: str
    after: int
    """The newest generation of that id that the training process knows of."""
    facts: ManifestFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRecord:
    """One rank's part of a save, durable; or why it is not to be had."""

    part: SavePart
    host: str
    files: tuple[FileEntry, ...] = ()
    head: SaveHead | None = None
    """On rank 0."""
    missing: str = ""
    """Why this rank has no part (its disk is full, the save was skipped): nothing is committed."""
