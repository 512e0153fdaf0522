"""The record of one save: its timings, sizes and outcome; and the options of snapshots."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from bt_lightning.errors import SaveTimeoutError, TornSnapshotError
from bt_lightning.worker_messages import CommitFailed, CommitImage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bt_lightning.manifest import ManifestFacts
    from bt_lightning.save_decisions import SaveDecision
    from bt_lightning.worker_messages import Committed, FileImage

Overlap = Literal["wait", "skip", "latest"]
Policy = Literal["auto", "lazy", "eager"]
_SHOWN = 5
SnapshotKind = Literal["lazy", "eager", "clone", "shared", "direct", "none"]
"""`clone`: copied on the device first. `shared`: the bytes of the save before. `direct`: written by
the training process itself. `none`: skipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotOptions:
    """The arguments of `BTLightning` that control snapshots."""

    snapshot: Policy = "auto"
    overlap: Overlap = "wait"
    arenas: int = 1
    arena_memory: int | None = None
    """Bytes that all arenas together may take; None: limited by free memory only."""

    @property
    def count(self) -> int:
        """Number of arenas: at least two with `overlap="latest"`, which replaces a queued save."""
        return max(self.arenas, 2) if self.overlap == "latest" else self.arenas


@dataclass(slots=True, kw_only=True)
class SaveRecord:
    """One save, from the call until it is in the store; numbers not known yet are 0."""

    number: int
    """From 1, in this run."""
    checkpoint_id: str
    step: int
    snapshot: SnapshotKind = "lazy"
    decision: SaveDecision = "saved"
    bytes: int = 0
    call_ms: float = 0.0
    """Milliseconds that the call to save blocked the training thread."""
    wait_ms: float = 0.0
    """Milliseconds of `call_ms` spent waiting for a free arena."""
    guard_ms: float = 0.0
    """Milliseconds that the training thread waited for the copy before an optimizer step."""
    copy_ms: float = 0.0
    """Milliseconds from the end of the call to the end of the copy."""
    write_s: float = 0.0
    local_durable_s: float = 0.0
    remote_durable_s: float = 0.0
    cpu_s: float = 0.0
    """CPU seconds of the commit: of the worker, or of the training thread if `direct`."""
    evicted: int = 0
    """Number of local copies of stored checkpoints that were deleted to make space for it."""
    streamed: bool = False
    """Whether it was written to the store only, since the disk was full or failed."""
    trouble: str = ""
    """The error of the disk, if it failed."""

    @property
    def is_kept(self) -> bool:
        """Whether it was committed, or waits for its commit."""
        return self.decision in {"saved", "waited"}

    def commit_message(
        self,
        arena: int,
        files: tuple[FileImage, ...],
        facts: ManifestFacts,
        began: float,
        after: int,
    ) -> CommitImage:
        """The message that tells the worker to commit this save; arguments as `CommitImage`."""
        return CommitImage(
            number=self.number,
            arena=arena,
            checkpoint_id=self.checkpoint_id,
            files=files,
            facts=facts,
            began=began,
            after=after,
        )

    def update_from(self, event: Committed | CommitFailed) -> None:
        """Copy the worker's numbers into this record."""
        self.evicted = event.evicted
        if isinstance(event, CommitFailed):
            return
        self.write_s, self.cpu_s = event.write_s, event.cpu_s
        self.local_durable_s = event.durable_s
        self.streamed, self.trouble = event.streamed, event.trouble

    def metrics(self) -> dict[str, float]:
        """The known numbers for loggers, as `checkpoint/<field>`."""
        return {
            f"checkpoint/{name}": float(value)
            for name, value in asdict(self).items()
            if isinstance(value, int | float) and name != "number"
            if value or not name.endswith("_durable_s")
        }


def torn_error(record: SaveRecord) -> TornSnapshotError:
    """The error for a save that the torn-copy detector discarded."""
    return TornSnapshotError(
        f"the checkpoint {record.checkpoint_id} was given up: something other than an optimizer"
        " step changed weights or optimizer state while they were copied during training. Use"
        " BTLightning(snapshot='eager'), which copies before the save returns"
    )


def changed_text(record: SaveRecord, names: list[str]) -> str:
    """The warning for a save that left out what is not that of the base."""
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" * (len(names) > _SHOWN))
    return (
        f"the checkpoint {record.checkpoint_id} was given up: it left out weights that do not"
        f" train, and something wrote to them: {shown}. They are stored from here on;"
        " BTLightning(save_frozen=True) stores them from the start"
    )


def timeout_error(records: Iterable[SaveRecord], waited_s: float) -> SaveTimeoutError:
    """The error for saves that were not written to the disk in time."""
    names = ", ".join(record.checkpoint_id for record in records)
    return SaveTimeoutError(
        f"{names} was not written to the disk within {waited_s:.0f} s: check the volume of"
        " BT_CHECKPOINT_DIR"
    )
