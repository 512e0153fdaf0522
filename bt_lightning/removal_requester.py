"""Who asks for the removal of a checkpoint, and how a request says so, on a disk and in a store."""

from __future__ import annotations

import json
from enum import Enum

from bt_lightning.file_limits import RECORD, parse_json


class Requester(Enum):
    """Who asks for a removal; the value is what a request says."""

    TRAINING = "training"
    """A `ModelCheckpoint`, or whoever else calls the trainer's `remove_checkpoint`."""
    PERSON = "person"
    """Somebody at the command line."""

    def to_bytes(self) -> bytes:
        """A line of JSON."""
        return json.dumps({"by": self.value}).encode("ascii") + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, unsaid: Requester) -> Requester:
        """Who asked, as a request says; `unsaid` is who asks by one that says nothing.

        A requester that is not known here counts as the training: its requests do least.
        """
        if not data.strip():
            return unsaid
        try:
            return cls(parse_json(data, RECORD)["by"])
        except (ValueError, TypeError, LookupError):
            return cls.TRAINING
