"""The file that says that somebody wants a checkpoint kept: who, why, and since when."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from bt_lightning.file_limits import RECORD, parse_json

_LONGEST = 500
"""Characters of what a person writes: it is shown in tables."""


@dataclass(frozen=True, slots=True)
class Protection:
    """Nobody deletes the checkpoint beside which this stands: no rule, no command, no job."""

    by: str = ""
    why: str = ""
    at: str = ""
    """ISO 8601 time in UTC."""

    def to_bytes(self) -> bytes:
        """JSON, a line."""
        cut = {name: value[:_LONGEST] for name, value in asdict(self).items()}
        return json.dumps(cut, sort_keys=True).encode("ascii") + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Protection:
        """What the file says; of one that cannot be read, nothing, but it protects all the same."""
        try:
            said = parse_json(data, RECORD)
            texts = {name: said.get(name, "") for name in ("by", "why", "at")}
        except (ValueError, AttributeError):
            return cls()
        return cls(**{name: str(text)[:_LONGEST] for name, text in texts.items()})
