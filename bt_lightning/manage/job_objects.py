"""All that a job has in a store, besides what is ours alone: what a deletion takes with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from bt_lightning.path_layout import DOT_DIR, folders_of, jobs_prefix

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bt_lightning.store.catalog.listing import JobListing

NAMED: Final = 20
"""Names of files that are said; of the others, how many there are."""
_ASIDE: Final = f"{DOT_DIR}-trash"


@dataclass(slots=True)
class JobObjects:
    """What one listing found of a job. Paths are below the job: `rank-0/checkpoint-1`."""

    checkpoints: dict[str, int] = field(default_factory=dict)
    """Bytes of each committed folder, one that is damaged too."""
    protected: set[str] = field(default_factory=set)
    files: dict[str, int] = field(default_factory=dict)
    """Bytes of each object of no checkpoint: logs, other folders, what was cut off or put aside."""

    @property
    def size(self) -> int:
        """Bytes of all that is not protected."""
        kept = sum(self.checkpoints[folder] for folder in self.protected)
        return sum(self.checkpoints.values()) + sum(self.files.values()) - kept

    @property
    def going(self) -> list[str]:
        """Folders that nobody protects."""
        return sorted(self.checkpoints.keys() - self.protected)


@dataclass(frozen=True, slots=True)
class Files:
    """Files, as they are told of."""

    number: int = 0
    size: int = 0
    """Bytes."""
    names: tuple[str, ...] = ()
    """The first `NAMED` of them."""

    @classmethod
    def of(cls, found: Iterable[tuple[str, int]]) -> Files:
        """Those of these names and sizes."""
        listed = sorted(found)
        names = tuple(name for name, _ in listed[:NAMED])
        return cls(len(listed), sum(size for _, size in listed), names)

    def as_dict(self) -> dict[str, object]:
        """As JSON has it."""
        return {"number": self.number, "size_bytes": self.size, "names": list(self.names)}


def is_ours(path: str) -> bool:
    """Whether an object below a job says something to us only: leases, records, requests."""
    return any(part.startswith(DOT_DIR) and part != _ASIDE for part in path.split("/"))


def job_objects(listing: JobListing, prefix: str) -> dict[tuple[str, str], JobObjects]:
    """What each job has, by project and job, of a listing of `prefix`."""
    found: dict[tuple[str, str], JobObjects] = {}
    for folder in listing.committed:
        name, path = _job_of(prefix, folder)
        if path:
            own = found.setdefault(name, JobObjects())
            own.checkpoints[path] = len(listing.committed[folder])
            if folder in listing.protected:
                own.protected.add(path)
    for key, size in {**listing.others, **listing.hidden_objects}.items():
        name, path = _job_of(prefix, key)
        if not path or is_ours(path):
            continue
        own = found.setdefault(name, JobObjects())
        outer = next((f for f in folders_of(path) if f in own.checkpoints), None)
        if outer is None:
            own.files[path] = size
        else:
            own.checkpoints[outer] += size
    return found


def _job_of(prefix: str, path: str) -> tuple[tuple[str, str], str]:
    """Project and job of a path below `prefix`, and the rest of it; no rest if it is of no job."""
    full = f"{prefix}/{path}"
    project, _, rest = full.removeprefix(f"{jobs_prefix()}/").partition("/")
    word, _, rest = rest.partition("/")
    job, _, rest = rest.partition("/")
    return (project, job), rest if word == "jobs" else ""
