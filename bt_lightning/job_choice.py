"""The name of a job that nobody named, and which stored job a new directory goes on with. Pure.

The table of cases is in docs/design/012-which-job-is-this.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bt_lightning.path_layout import unique_name_of_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bt_lightning.fit_identity import FitIdentity
    from bt_lightning.fit_ledger import FitRecord

_MAX_NAME: Final = 223
"""Characters of a directory's name in the name that is made: the whole fits one path part."""
_MADE: Final = re.compile(r"(.+-[0-9a-f]{8})-\d{8}-\d{6}-[0-9a-f]{8}", re.DOTALL)
_MAY_DIFFER: Final = ("program", "limits")
"""Somebody edited the script, or trains on. Another seed or other data are another machine's."""


@dataclass(frozen=True, slots=True)
class PathJob:
    """A job of the store that began in a directory of this path, on whatever machine."""

    job: str
    fits: Sequence[FitRecord]
    """As its ledger in the store tells."""

    @property
    def ended(self) -> bool:
        """Whether nothing of it is left to go on with."""
        return all(one.ended for one in self.fits)


@dataclass(frozen=True, slots=True)
class JobChoice:
    """The job that a new directory goes on with, or None to begin one; and what to say of it."""

    job: str | None
    doubt: tuple[str, ...] = ()
    """Jobs that did not end, and that it might be."""


def name_of_path(path: bytes) -> str:
    """What the names of all jobs begin with that began in the normalized, absolute `path`."""
    return unique_name_of_path(path, _MAX_NAME)


def made_name(of_path: str, began: str, random: str) -> str:
    """The name of a job: `began` is `20300102-030405`, UTC, and `random` 8 hexadecimal digits."""
    return f"{of_path}-{began}-{random}"


def path_of_made_name(job: str) -> str | None:
    """What `name_of_path` gave for a job's name; None for a name that somebody gave."""
    found = _MADE.fullmatch(job)
    return None if found is None else found[1]


def choose_job(identity: FitIdentity, jobs: Iterable[PathJob]) -> JobChoice:
    """Decide which of `jobs` a directory without any record has lost: one, or none.

    A path alone says nothing: two machines may have it.
    """
    open_ = [one for one in jobs if one.fits and not one.ended]
    own = [one for one in open_ if any(_is_same(identity, fit) for fit in one.fits)]
    if len(own) == 1:
        return JobChoice(own[0].job)
    return JobChoice(None, tuple(one.job for one in own or open_))


def _is_same(identity: FitIdentity, fit: FitRecord) -> bool:
    """Whether both are known, and nothing but an edit tells them apart."""
    differs = (name.partition(".")[0] for name in identity.differences(fit.identity))
    known = bool(identity.model and fit.identity.model)
    return known and all(name in _MAY_DIFFER for name in differs)
