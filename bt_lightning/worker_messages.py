"""Messages between the training process and its worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from bt_lightning.glob_patterns import Patterns  # noqa: TC001 - a dataclass of it is pickled
from bt_lightning.manifest import ManifestFacts  # noqa: TC001 - as well
from bt_lightning.metrics_target import NO_METRICS, MetricsTarget
from bt_lightning.retention import POLICY, RetentionPolicy
from bt_lightning.sharding.save_part import SavePart  # noqa: TC001 - as well

WORKER_NAME: Final = "bt-worker"
"""The name of a worker process in ps(1); at most 15 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """The configuration of a worker, given at its start.

    It is sent through the pipe of `multiprocessing`, never on a command line.
    """

    root: str
    """The checkpoint directory, absolute."""
    store_url: str | None = field(repr=False)
    storage_options: dict[str, object] = field(default_factory=dict, repr=False)
    """Keyword arguments of the fsspec filesystem; may hold secrets, so it has no repr."""
    upload_bytes_s: float | None = None
    """Limit of uploads in bytes a second; None for no limit."""
    content_md5: bool = False
    """Whether each part is sent to S3 with a `Content-MD5`."""
    prefix: str
    """Key prefix of this job and node in the store."""
    drain_s: float
    """Seconds that the worker may continue after the end of the training process."""
    standby: bool = False
    """Whether to publish only while no worker of a training process wants to; commits nothing."""
    budget: int | None = None
    """Bytes that the checkpoint directory may take; None: all of its volume."""
    files: Patterns | None = None
    """Which files that belong to no checkpoint are uploaded as well; None for none."""
    policy: RetentionPolicy = POLICY
    """What stays, on the disk and in the store."""
    rank: int = 0
    """Rank of the training process. The worker of any but rank 0 only adds parts: it holds no lock
    of the directory, publishes nothing, and deletes nothing but its own part."""
    hosts: tuple[str, ...] = ()
    """The host of each rank, for errors; empty if not known."""
    gather: Literal["directory", "store"] = "directory"
    """Where the parts of all ranks come together."""
    gather_s: float = 60.0
    """Seconds that a part waits for the parts of other ranks, at least."""
    hold_s: float = 0.0
    """Seconds that the newest image stays in memory when the trainer was killed."""
    metrics: MetricsTarget = NO_METRICS
    """Where the numbers for Prometheus go."""

    @property
    def leads(self) -> bool:
        """Whether this worker publishes and deletes: that of rank 0."""
        return self.rank == 0


# training process -> worker


@dataclass(frozen=True, slots=True)
class CheckStore:
    """Question: can the store be written, read and cleaned up? `Answer` with None."""


@dataclass(frozen=True, slots=True)
class ListStore:
    """Question: what is committed in the store? `Answer` with `list[StoredCheckpoint]`."""


@dataclass(frozen=True, slots=True)
class ReadFits:
    """Question: the store's ledger of fits. `Answer` with its bytes, or None if there is none."""


@dataclass(frozen=True, slots=True)
class FindJobs:
    """Question: jobs that began in a directory of this path. `Answer` with `list[FoundJob]`."""

    name_of_path: str
    """By `job_choice.name_of_path`."""
    older: str
    """The name that older versions gave such a job."""


@dataclass(frozen=True, slots=True)
class ReadLease:
    """Question: who publishes below a prefix of the store? `Answer` with `LeaseSeen`."""

    prefix: str


@dataclass(frozen=True, slots=True)
class Fetch:
    """Request: download one checkpoint to the disk. `Answer` with the directory's path."""

    folder: str
    target: str
    """The checkpoint id that it gets in the checkpoint directory."""


@dataclass(frozen=True, slots=True)
class Verify:
    """Question: is a checkpoint in the store complete, byte by byte? `Answer` with None."""

    folder: str
    sizes_only: bool = False
    """Whether the files' sizes are enough: the bytes are verified where they are read."""


@dataclass(frozen=True, slots=True)
class FreeSpace:
    """Request: free disk space for what this process writes. `Answer` with `FreedSpace`."""

    size: int
    """Bytes."""
    checkpoint_id: str
    """The checkpoint that needs the space, for the event log."""


@dataclass(frozen=True, slots=True)
class Begin:
    """Start to publish and delete; before, the worker only answers questions."""

    pinned: frozenset[str]
    """Manifest digests of what the run resumed from: never deleted."""


@dataclass(frozen=True, slots=True)
class ShareArena:
    """An arena of the training process; its descriptor follows on the same socket."""

    index: int
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class DropArena:
    """Unmap an arena, which is not used any more."""

    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileImage:
    """The bytes of one file of a checkpoint, in an arena."""

    path: str
    """Posix path inside the checkpoint's directory."""
    offset: int
    size: int
    """Bytes."""
    content: int
    """Equal numbers mean equal bytes: a file that is written already can be linked."""
    zipped: bool = False
    """Whether it is a zip file whose CRCs the worker has to fill in (`zip_layout`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitImage:
    """Commit a complete image; answered by `Committed`, `CommitFailed` or `Withdrawn`, once.

    With `part`, `PartDurable` comes before that, unless it failed or was withdrawn.
    """

    number: int
    """Number of the save, from 1."""
    arena: int
    checkpoint_id: str
    files: tuple[FileImage, ...]
    facts: ManifestFacts
    began: float
    """`time.time()` at the call that saved."""
    after: int = 0
    """The newest generation of that id that the training process knows of."""
    part: SavePart | None = None
    """Of which rank the files are, if those of other ranks belong to the checkpoint as well. The
    id, facts and `after` of rank 0 count."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Give up a commit that has not begun; answered by `Withdrawn`, or by its own outcome."""

    number: int


@dataclass(frozen=True, slots=True)
class RemoveSave:
    """A save that is under way is to be deleted once a newer one is committed."""

    number: int


@dataclass(frozen=True, slots=True)
class Wake:
    """The disk has a new commit or removal request: scan it again."""


@dataclass(frozen=True, slots=True)
class LogMetrics:
    """Append to the log of metrics."""

    lines: bytes
    """As `event_log.log_line` makes them."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Publish all that is committed, then answer `Drained`."""

    deadline_s: float
    parts: bool = True
    """Whether to wait for the parts of ranks that may be dead."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End now; what is not published stays in the outbox for the next start."""


# worker -> training process


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCheckpoint:
    """One committed checkpoint of the store."""

    folder: str
    manifest: bytes


@dataclass(frozen=True, slots=True)
class FoundJob:
    """A job of the store whose name comes from a path."""

    job: str
    ledger: bytes
    """Its ledger of fits."""


@dataclass(frozen=True, slots=True)
class LeaseSeen:
    """The lease of a prefix at this moment."""

    number: int
    """0 if nobody holds it."""
    holder: bytes | None


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a question: a value, or an error."""

    value: object
    error: Exception | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FreedSpace:
    """The disk space for a checkpoint, and what was evicted to have it."""

    fits: bool
    evicted: tuple[str, ...] = ()
    """Ids of checkpoints whose copies on the disk were deleted; the store has them."""
    reason: str = ""
    """If it does not fit: bytes needed and free, and the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A save is committed, on the local disk or else in the store; its arena is free."""

    number: int
    manifest: bytes
    write_s: float
    """Seconds of the commit: files, digests, fsync, rename."""
    durable_s: float
    """Seconds from the call that saved to here."""
    cpu_s: float
    """Seconds of CPU that the commit took in the worker."""
    evicted: int = 0
    """Number of copies on the disk that were evicted for it."""
    streamed: bool = False
    """Whether it was sent to the store, and the disk has no copy."""
    trouble: str = ""
    """The disk's error and what to do, if the disk failed; empty if it was just full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitFailed:
    """A save could not be committed; its arena is free, and what was committed is untouched."""

    number: int
    error: Exception
    evicted: int = 0
    """Number of copies on the disk that were evicted in vain."""


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A save was given up before it began; its arena is free."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A checkpoint is committed in the store."""

    checkpoint_id: str
    digest: str
    size: int
    """Bytes."""
    seconds: float
    remote_durable_s: float
    """Seconds from the save to here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkFailed:
    """The worker failed at something that another try will not cure."""

    what: str
    error: str
    of_a_file: bool = False
    """Whether only a job file failed: no reason to end a training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """Everything is published, or the deadline is over."""

    waiting: tuple[str, ...]
    """Ids of checkpoints, then paths of job files, that are not in the store yet."""
    reason: str | None
    """The store's last error, if that is the cause."""
