"""All objects of a job in a store that a deletion deletes; our own bookkeeping is left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from bt_lightning.path_layout import DOT_DIR, folders_of, jobs_prefix

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bt_lightning.store.catalog.listing import PrefixListing

NAMED: Final = 20
"""File names that are listed; the others are only counted."""
_TRASH: Final = f"{DOT_DIR}-trash"


@dataclass(slots=True)
class JobObjects:
    """The objects of a job in one listing. Paths are below the job: `rank-0/checkpoint-1`."""

    checkpoints: dict[str, int] = field(default_factory=dict)
    """Bytes of each committed folder, damaged ones included."""
    protected: set[str] = field(default_factory=set)
    files: dict[str, int] = field(default_factory=dict)
    """Bytes of each object of no checkpoint: logs, folders, unfinished uploads, the trash."""

    @property
    def size(self) -> int:
        """Bytes of all that is not protected."""
        kept = sum(self.checkpoints[folder] for folder in self.protected)
        return sum(self.checkpoints.values()) + sum(self.files.values()) - kept

    @property
    def going(self) -> list[str]:
        """Folders that are not protected."""
        return sorted(self.checkpoints.keys() - self.protected)


@dataclass(frozen=True, slots=True)
class Files:
    """A summary of files for people and JSON."""

    number: int = 0
    size: int = 0
    """Bytes."""
    names: tuple[str, ...] = ()
    """The first `NAMED` of them."""

    @classmethod
    def of(cls, found: Iterable[tuple[str, int]]) -> Files:
        """Summarize files, given as (name, bytes)."""
        listed = sorted(found)
        names = tuple(name for name, _ in listed[:NAMED])
        return cls(len(listed), sum(size for _, size in listed), names)

    def as_dict(self) -> dict[str, object]:
        """The summary as a JSON object."""
        return {"number": self.number, "size_bytes": self.size, "names": list(self.names)}


def is_ours(path: str) -> bool:
    """Whether an object below a job is our own bookkeeping: a lease, record or request."""
    return any(part.startswith(DOT_DIR) and part != _TRASH for part in path.split("/"))


def job_objects(listing: PrefixListing, prefix: str) -> dict[tuple[str, str], JobObjects]:
    """The objects of each job, by (project, job), in a listing of `prefix`."""
    found: dict[tuple[str, str], JobObjects] = {}
    for folder, info in listing.manifests.items():
        name, path = _job_of(prefix, folder)
        if path:
            objects = found.setdefault(name, JobObjects())
            objects.checkpoints[path] = info.size
            if folder in listing.protected:
                objects.protected.add(path)
    for key, size in {**listing.others, **listing.hidden_objects}.items():
        name, path = _job_of(prefix, key)
        if not path or is_ours(path):
            continue
        objects = found.setdefault(name, JobObjects())
        outer = next((f for f in folders_of(path) if f in objects.checkpoints), None)
        if outer is None:
            objects.files[path] = size
        else:
            objects.checkpoints[outer] += size
    return found


def _job_of(prefix: str, path: str) -> tuple[tuple[str, str], str]:
    """(Project, job) of a path below `prefix`, and the rest of it; no rest if it is of no job."""
    full = f"{prefix}/{path}"
    project, _, rest = full.removeprefix(f"{jobs_prefix()}/").partition("/")
    word, _, rest = rest.partition("/")
    job, _, rest = rest.partition("/")
    return (project, job), rest if word == "jobs" else ""
