"""What the records of parts make together: a checkpoint, or the reason why there is none.

There is one verdict for a save. Whoever comes first makes it, by a name that only one can take.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from bt_lightning import file_limits
from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_limits import parse_json
from bt_lightning.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bt_lightning.sharding.save_part import PartRecord, SavePart

_FORMAT: Final = "bt_lightning.gather"
_HEAD: Final = b'{"format": "bt_lightning.gather"'
_NAMED: Final = 8
"""Most ranks that a text names."""
VerdictCause = Literal["", "full", "torn", "failed", "dropped", "late", "apart"]
"""Empty for a commit. `late`: parts did not come in time. `apart`: parts that do not fit."""
_CAUSES: Final = ("full", "torn", "failed", "dropped", "late", "apart")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatherVerdict:
    """The outcome of a gather; the same for all ranks."""

    manifest: Manifest | None = None
    """Of the checkpoint; None if nothing is committed."""
    why: str = ""
    """Why nothing is committed; names ranks and hosts."""
    cause: VerdictCause = ""

    def to_bytes(self) -> bytes:
        """The bytes of the file: those of the manifest, or a small JSON object."""
        if self.manifest is not None:
            return self.manifest.to_bytes()
        payload = {"format": _FORMAT, "why": self.why, "cause": self.cause}
        return (json.dumps(payload) + "\n").encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> GatherVerdict:
        """Parse the bytes that `to_bytes` returned; errors name `where`.

        Raises:
            CheckpointCorruptError: it is no whole verdict.
        """
        if not data.startswith(_HEAD):
            return cls(manifest=Manifest.from_bytes(data, where))
        try:
            payload = parse_json(data, file_limits.RECORD)
        except CheckpointCorruptError as error:
            msg = f"the verdict {where} is damaged: {error}"
            raise CheckpointCorruptError(msg) from error
        why, cause = payload.get("why"), payload.get("cause")
        if not isinstance(why, str) or cause not in _CAUSES:
            msg = f"the verdict {where} is damaged: it has no reason"
            raise CheckpointCorruptError(msg)
        return cls(why=why, cause=cause)


@dataclass(frozen=True, slots=True)
class WholeGather:
    """All parts are there, and fit each other: they can be committed."""


def judge_parts(
    records: Mapping[int, PartRecord], part: SavePart
) -> GatherVerdict | WholeGather | None:
    """What the records that are there make; None while some are missing and all are good.

    Args:
        records: by rank, of the save of `part`.
        part: of the rank that asks.
    """
    for rank, record in sorted(records.items()):
        if record.missing:
            why = f"rank {rank} on {record.host} has no part of it: {record.missing}"
            return GatherVerdict(why=why, cause=record.cause)
    apart = _apart(records, part)
    if apart:
        return GatherVerdict(why=apart, cause="apart")
    if any(rank not in records for rank in range(part.world_size)):
        return None
    return _refuse_equal_paths(records) or WholeGather()


def _apart(records: Mapping[int, PartRecord], part: SavePart) -> str:
    """What two parts say differently of the whole; empty if they agree."""
    first: PartRecord | None = None
    for rank, record in sorted(records.items()):
        said = record.part
        if said.key != part.key or said.rank != rank:
            return f"the part of rank {rank} on {record.host} is of another save or rank"
        if (record.head is not None) != (rank == 0):
            return f"the part of rank {rank} on {record.host} does not say what a part of it should"
        first = first or record
        one, other = first.part, said
        if one.of_whole != other.of_whole:
            return (
                f"rank {one.rank} on {first.host} and rank {rank} on {record.host} hold parts of"
                f" states that differ in step, tensors, shapes or meshes: {_shown(one)} and"
                f" {_shown(other)}"
            )
    return ""


def _shown(part: SavePart) -> str:
    return f"fingerprint {part.fingerprint[:8]} of {part.world_size} ranks"


def _refuse_equal_paths(records: Mapping[int, PartRecord]) -> GatherVerdict | None:
    owners: dict[str, int] = {}
    for rank, record in sorted(records.items()):
        for entry in record.files:
            other = owners.setdefault(entry.path, rank)
            if other != rank:
                why = f"rank {other} and rank {rank} on {record.host} both wrote {entry.path}"
                return GatherVerdict(why=why, cause="apart")
    return None


def manifest_of(records: Mapping[int, PartRecord], generation: int) -> Manifest:
    """The manifest of a whole gather: the files of all ranks, in their order; facts of rank 0.

    `generation` is one more than the newest that its committer knows of the id; what rank 0 knew
    of it counts as well.
    """
    head = records[0].head
    assert head is not None
    files = tuple(entry for rank in sorted(records) for entry in records[rank].files)
    return head.facts.manifest(head.checkpoint_id, max(generation, head.after + 1), files)


def late(
    records: Mapping[int, PartRecord], hosts: Mapping[int, str], part: SavePart, waited_s: float
) -> GatherVerdict:
    """The verdict at the deadline; it names the ranks whose parts are missing, and their hosts.

    Args:
        records: the records that are there.
        hosts: of the ranks that are known.
        part: of the rank that waited.
        waited_s: seconds since its own part was durable.
    """
    missing = [rank for rank in range(part.world_size) if rank not in records]
    shown = missing[:_NAMED]
    named = ", ".join(f"{rank} on {hosts.get(rank) or 'an unknown host'}" for rank in shown)
    more = f" and of {len(missing) - _NAMED} more" * (len(missing) > _NAMED)
    if missing:
        why = f"the part of rank {named}{more} did not come within {waited_s:.0f} s"
    else:
        why = f"all parts are there, but could not be put together within {waited_s:.0f} s"
    return GatherVerdict(why=why, cause="late")
