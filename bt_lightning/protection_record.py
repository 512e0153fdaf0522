"""The record of a checkpoint's protection: who protected it, why, and when."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from bt_lightning.file_limits import RECORD, parse_json

_MAX_CHARS = 500
"""Characters of each text that a person writes."""


@dataclass(frozen=True, slots=True)
class Protection:
    """Protects a checkpoint from deletion by any rule, command or job."""

    by: str = ""
    why: str = ""
    at: str = ""
    """ISO 8601 time in UTC."""

    def to_bytes(self) -> bytes:
        """The record as one line of JSON."""
        cut = {name: value[:_MAX_CHARS] for name, value in asdict(self).items()}
        return json.dumps(cut, sort_keys=True).encode("ascii") + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Protection:
        """Parse a record; one that cannot be read has empty fields, and still protects."""
        try:
            fields = parse_json(data, RECORD)
            texts = {name: fields.get(name, "") for name in ("by", "why", "at")}
        except (ValueError, AttributeError):
            return cls()
        return cls(**{name: str(text)[:_MAX_CHARS] for name, text in texts.items()})
