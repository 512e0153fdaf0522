"""What the meeting place of a sharded save in a store has: the claim of its folder, and records."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_limits import RECORD, parse_json
from bt_lightning.path_layout import check_checkpoint_id, store_folder

if TYPE_CHECKING:
    from bt_lightning.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Claim:
    """The folder of the store that a save has."""

    save: str
    """`SaveKey.folder`: the run and the number of the save."""
    checkpoint_id: str
    number: int
    """The generation that the checkpoint has."""

    @property
    def folder(self) -> str:
        """Folder of the checkpoint, below the prefix."""
        return store_folder(self.checkpoint_id, self.number)

    def to_bytes(self) -> bytes:
        """JSON; whose claim it is, its place says."""
        text = json.dumps({"id": self.checkpoint_id, "number": self.number}) + "\n"
        return text.encode("ascii")

    @classmethod
    def from_bytes(cls, save: str, data: bytes, where: str) -> Claim:
        """Parse the bytes that `to_bytes` returned; errors name `where`.

        Raises:
            CheckpointCorruptError: it is no claim.
        """
        try:
            found = parse_json(data, RECORD)
            number, checkpoint_id = found["number"], check_checkpoint_id(found["id"])
        except (KeyError, TypeError, ValueError) as error:
            number, checkpoint_id, why = 0, "", f"{type(error).__name__} {error}"
        else:
            why = f"its number is {number!r}"
        if type(number) is not int or number < 1:
            msg = f"the claim {where} is damaged: {why}"
            raise CheckpointCorruptError(msg)
        return cls(save, checkpoint_id, number)


@dataclass(frozen=True, slots=True)
class Meeting:
    """What the meeting place of a save has at a moment."""

    claim: Claim | None
    records: dict[int, bytes]
    """Rank -> its record, of the ranks that were asked for."""
    ranks: frozenset[int]
    """The ranks whose records are there."""
    outcome: bytes | None
    """Why the save was given up, if it was, as `end` was told."""
    beats: frozenset[str]
    """Signs of ranks that are still sending; a new one comes from time to time."""


def publication_of(manifest: Manifest) -> str:
    """Names the claim of a checkpoint that is committed on a disk; no save has such a name."""
    return f"{manifest.digest}-0"


def is_publication(save: str) -> bool:
    """Whether `publication_of` made this name."""
    return save.endswith("-0")
