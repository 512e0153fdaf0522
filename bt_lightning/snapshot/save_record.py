"""What one save cost and came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from bt_lightning.errors import SaveTimeoutError, TornSnapshotError
from bt_lightning.worker_messages import CommitFailed, CommitImage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bt_lightning.manifest import ManifestFacts
    from bt_lightning.worker_messages import Committed, FileImage

Overlap = Literal["wait", "skip", "latest"]
Policy = Literal["auto", "lazy", "eager"]
SnapshotKind = Literal["lazy", "eager", "clone", "shared", "direct", "none"]
"""`clone`: copied on the device first. `shared`: the bytes of the save before. `direct`: written by
the training process itself. `none`: skipped."""
SaveDecision = Literal["saved", "waited", "replaced", "skipped", "torn", "refused", "failed"]
"""`waited`: for an arena. `replaced`: a queued save gave way to a newer one. `refused`: there was
no room for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotOptions:
    """How saves are taken; the arguments of `BTLightning` that say so."""

    snapshot: Policy = "auto"
    overlap: Overlap = "wait"
    arenas: int = 1
    arena_memory: int | None = None
    """Bytes that all arenas together may take; None: as much as the machine has to spare."""

    @property
    def count(self) -> int:
        """Arenas in use: a save that replaces a queued one needs a second."""
        return max(self.arenas, 2) if self.overlap == "latest" else self.arenas


@dataclass(slots=True, kw_only=True)
class SaveRecord:
    """One save, from the call to the bucket; what is not known yet is 0."""

    number: int
    """From 1, in this run."""
    checkpoint_id: str
    step: int
    snapshot: SnapshotKind = "lazy"
    decision: SaveDecision = "saved"
    bytes: int = 0
    call_ms: float = 0.0
    """Milliseconds that the call to save held the training thread."""
    wait_ms: float = 0.0
    """Milliseconds of it that waited for a free arena."""
    guard_ms: float = 0.0
    """Milliseconds that the training thread waited for the copy later on."""
    copy_ms: float = 0.0
    """Milliseconds from the end of the call to the end of the copy."""
    write_s: float = 0.0
    local_durable_s: float = 0.0
    remote_durable_s: float = 0.0
    cpu_s: float = 0.0
    """Seconds of CPU that it took to commit it: of the worker, or of this thread if `direct`."""
    evicted: int = 0
    """Copies on the disk, of checkpoints in the store, that made room for it."""
    streamed: bool = False
    """Whether it went to the store only, as the disk had no room, or failed."""
    trouble: str = ""
    """What the disk answered, if it failed."""

    @property
    def is_kept(self) -> bool:
        """Whether it was committed, or waits for its commit."""
        return self.decision in {"saved", "waited"}

    def job(
        self,
        arena: int,
        files: tuple[FileImage, ...],
        facts: ManifestFacts,
        began: float,
        after: int,
    ) -> CommitImage:
        """What the worker is told to commit; the fields of `CommitImage`."""
        return CommitImage(
            number=self.number,
            arena=arena,
            checkpoint_id=self.checkpoint_id,
            files=files,
            facts=facts,
            began=began,
            after=after,
        )

    def take(self, event: Committed | CommitFailed) -> None:
        """Take the numbers that the worker says."""
        self.evicted = event.evicted
        if isinstance(event, CommitFailed):
            return
        self.write_s, self.cpu_s = event.write_s, event.cpu_s
        self.local_durable_s = event.durable_s
        self.streamed, self.trouble = event.streamed, event.trouble

    def metrics(self) -> dict[str, float]:
        """The numbers that are known, for loggers."""
        return {
            f"checkpoint/{name}": float(value)
            for name, value in asdict(self).items()
            if isinstance(value, int | float) and name != "number"
            if value or not name.endswith("_durable_s")
        }


def torn(record: SaveRecord) -> TornSnapshotError:
    """What is raised for a save that the torn-copy detector gave up."""
    return TornSnapshotError(
        f"the checkpoint {record.checkpoint_id} was given up: something other than an optimizer"
        " step changed weights or optimizer state while they were copied beside training. Use"
        " BTLightning(snapshot='eager'), which copies before the save returns"
    )


def too_slow(records: Iterable[SaveRecord], waited_s: float) -> SaveTimeoutError:
    """What is raised for saves that the disk did not take in time."""
    names = ", ".join(record.checkpoint_id for record in records)
    return SaveTimeoutError(
        f"the disk has not taken {names} within {waited_s:.0f} s: check the volume of"
        " BT_CHECKPOINT_DIR"
    )
