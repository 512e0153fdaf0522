"""A checkpoint of a job as commands see it, and where a job's checkpoints are asked for."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from bt_lightning.checkpoints_of_fit import of_newest_fit
from bt_lightning.errors import CheckpointNotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bt_lightning.manifest import Manifest
    from bt_lightning.protection_record import Protection
    from bt_lightning.store.transfer import checkpoint_reader

SYNCING, COMPLETE = "SYNCING", "COMPLETE"
NOT_COMMITTED = "NOT COMMITTED"
_MAX_NEAR = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointItem:
    """One committed checkpoint of a job."""

    project: str
    job: str
    node_rank: int
    name: str
    """What `find` takes: its id, or `rank-N/<id>` where another node has the same id."""
    where: str
    """Key prefix in the store, or the directory."""
    manifest: Manifest
    protected: bool
    committed: bool = True
    """Whether it has a manifest; else it was recognised as it lies, and large files may have no
    digest: see `with_digests`."""
    sync_status: str | None = None
    """`COMPLETE`: durable in the store. `SYNCING`: on this disk only, so far. `NOT COMMITTED`:
    recognised as it lies. None: unknown."""


class JobCheckpoints(Protocol):
    """The checkpoints of a job. Used by one thread; what `reader` returns, by several."""

    name: str
    """Directory or URL, for messages."""
    project: str
    job: str

    @property
    def refused(self) -> Sequence[str]:
        """Why folders that look like checkpoints are left out; known after `items`."""

    def items(self) -> list[CheckpointItem]:
        """All checkpoints, newest first."""

    def reader(self, item: CheckpointItem) -> checkpoint_reader.CheckpointReader:
        """A reader of its bytes."""

    def url(self, item: CheckpointItem, path: str, expires_s: int) -> str:
        """A URL of one of its files, valid for `expires_s` seconds; a secret if it is signed."""

    def protection(self, item: CheckpointItem) -> Protection | None:
        """Its protection; None if it has none."""

    def protect(self, item: CheckpointItem, protection: Protection) -> None:
        """Protect it from deletion."""

    def unprotect(self, item: CheckpointItem) -> None:
        """Remove its protection."""


def find(source: JobCheckpoints, name: str) -> CheckpointItem:
    """The item of that name; `latest` is the newest of the fit that saved last.

    Raises:
        CheckpointNotFoundError: there is none; the message lists similar names.
    """
    items = source.items()
    if name == "latest" and items:
        return of_newest_fit(items, lambda item: item.manifest)[0]
    for item in items:
        if name in {item.name, f"rank-{item.node_rank}/{item.name}"}:
            return item
    names = [item.name for item in items]
    near = difflib.get_close_matches(name, names, _MAX_NEAR, 0.3) or names[:_MAX_NEAR]
    has = f"it has {', '.join(near)}" if len(near) == len(names) else f"near: {', '.join(near)}"
    msg = f"{source.name} has no checkpoint {name!r}" + (f" ({has})" if near else ": it is empty")
    raise CheckpointNotFoundError(msg)
