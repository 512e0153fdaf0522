"""What crosses the pipe between the training process and its worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from bt_lightning.glob_patterns import Patterns  # noqa: TC001 - a dataclass of it is pickled
from bt_lightning.manifest import ManifestFacts  # noqa: TC001 - as well

WORKER_NAME: Final = "bt-worker"
"""What ps(1) calls a worker process; 15 bytes at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """All that a worker is told at its start.

    It travels through the pipe of `multiprocessing`, never on a command line.
    """

    root: str
    """The checkpoint directory, absolute."""
    store_url: str | None = field(repr=False)
    storage_options: dict[str, object] = field(default_factory=dict, repr=False)
    """Keyword arguments of the fsspec filesystem; may hold secrets, so it has no repr."""
    upload_bytes_s: float | None = None
    """Bytes a second that uploads take at most; None for as many as go."""
    content_md5: bool = False
    """Whether S3 gets a `Content-MD5` with each part."""
    prefix: str
    """Key prefix of this job and node in the store."""
    drain_s: float
    """Seconds that the worker may go on after the training process is gone."""
    standby: bool = False
    """Publish only while no worker of a training process wants to. It commits no images."""
    budget: int | None = None
    """Bytes that the checkpoint directory may take; None: what its volume has."""
    files: Patterns | None = None
    """Which files that belong to no checkpoint are sent to the store as well; None for none."""


# training process -> worker


@dataclass(frozen=True, slots=True)
class CheckStore:
    """Ask: can the store be written, read and cleaned up? Answer: `Answer` with None."""


@dataclass(frozen=True, slots=True)
class ListStore:
    """Ask: what is committed in the store? Answer: `Answer` with `list[StoredCheckpoint]`."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """Ask: bring one checkpoint to the disk. Answer: `Answer` with the directory's path."""

    folder: str
    target: str
    """Checkpoint id that it gets under the checkpoint directory."""


@dataclass(frozen=True, slots=True)
class Verify:
    """Ask: does the store hold a checkpoint whole, byte by byte? Answer: `Answer` with None."""

    folder: str


@dataclass(frozen=True, slots=True)
class MakeRoom:
    """Ask: make room on the disk for what this process writes. Answer: `Answer` with `Room`."""

    size: int
    """Bytes."""
    checkpoint_id: str
    """For whose sake, for the record."""


@dataclass(frozen=True, slots=True)
class Begin:
    """From now on publish and delete; before, the worker only answers."""

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
    """The arena is not used any more: unmap it."""

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
    """Equal numbers name equal bytes: a file that was written already can be linked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitImage:
    """Commit a complete image; answered by `Committed`, `CommitFailed` or `Withdrawn`, once."""

    number: int
    """Of the save, from 1."""
    arena: int
    checkpoint_id: str
    files: tuple[FileImage, ...]
    facts: ManifestFacts
    began: float
    """`time.time()` at the call that saved."""
    after: int = 0
    """Newest generation of that id that the training process knows of, wherever it lies."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Give up a commit that has not begun; answered by `Withdrawn`, or by its own outcome."""

    number: int


@dataclass(frozen=True, slots=True)
class Unwanted:
    """A save that is under way is to go as soon as something newer is committed."""

    number: int


@dataclass(frozen=True, slots=True)
class Wake:
    """Something was committed, or its removal requested: look at the disk again."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Publish all that is committed, then answer `Drained`."""

    deadline_s: float


@dataclass(frozen=True, slots=True)
class Stop:
    """Leave now; what is not published stays in the outbox for the next start."""


# worker -> training process


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCheckpoint:
    """One committed checkpoint of the store."""

    folder: str
    manifest: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a question; `error` is set when there is none."""

    value: object
    error: Exception | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What there is on the disk for a checkpoint, and what was done to have it."""

    fits: bool
    evicted: tuple[str, ...] = ()
    """Ids of the checkpoints whose copies on the disk were deleted; the store has them."""
    says: str = ""
    """If it does not fit: the numbers, and what stands in the way."""


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
    """Copies on the disk that made room for it."""
    streamed: bool = False
    """It was sent to the store, and the disk has no copy."""
    trouble: str = ""
    """What the disk answered, and what to do, if it failed; empty if it was just full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitFailed:
    """A save could not be committed; its arena is free, and what was committed is untouched."""

    number: int
    error: Exception
    evicted: int = 0
    """Copies on the disk that made room in vain."""


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
    """The worker gave up on something that another try will not cure."""

    what: str
    error: str
    of_a_file: bool = False
    """It is of a file that belongs to no checkpoint: no reason to end a training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """Nothing is left to do, or the deadline is over."""

    waiting: tuple[str, ...]
    """Ids that are committed here and not in the store, and paths of files that are not."""
    reason: str | None
    """The last error of the store, if one stands in the way."""
