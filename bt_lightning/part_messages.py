"""Messages between the training process of a rank and its worker about parts of a save.

A part is committed by `CommitImage` with a `part`; what is here comes beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

from bt_lightning.sharding.save_part import MissingCause, SavePart  # noqa: TC001 - dataclasses are pickled

# training process -> worker


@dataclass(frozen=True, slots=True, kw_only=True)
class MissPart:
    """This rank has no part of a save (skipped, torn): say so to all ranks.

    Answered by `PartDurable` when that is written; no outcome follows.
    """

    number: int
    """Number of the save, as in `CommitImage`."""
    part: SavePart
    why: str
    cause: MissingCause = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitParts:
    """The part of this rank is durable: report the outcome of the whole, as for `CommitImage`.

    Sent for a part that the training process wrote itself, and to a worker that follows a killed
    one.
    """

    number: int
    part: SavePart
    began: float
    """`time.time()` at the call that saved."""


# worker -> training process


@dataclass(frozen=True, slots=True)
class PartDurable:
    """The part of this rank is durable: its arena is free. The outcome of the whole comes later."""

    number: int
