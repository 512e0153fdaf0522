"""What may become of a save, as its record, its event and the metrics say it."""

from __future__ import annotations

from typing import Final, Literal, get_args

SaveDecision = Literal[
    "saved",
    "waited",
    "replaced",
    "skipped",
    "torn",
    "changed",
    "refused",
    "failed",
    "uncommitted",
]
"""`waited`: for an arena. `replaced`: a queued save gave way to a newer one. `changed`: it left out
what is not that of the base. `refused`: there was no room for it. `uncommitted`: on ranks
other than 0, parts of other ranks are missing."""
DECISIONS: Final[tuple[str, ...]] = get_args(SaveDecision)
