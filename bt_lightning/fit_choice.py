"""Decides which of a job's fits a fit is, or that it is another one. Pure.

The table of cases is in docs/design/011-which-fit-is-this.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from bt_lightning.fit_identity import FitIdentity
    from bt_lightning.fit_ledger import FitRecord

HOW_TO_NAME: Final = "to say which fit is which, give each a name: BTLightning(fit_name=...)"
_MAY_BE_EDITED: Final = ("program", "limits", "seed")
"""What may differ between two starts of one fit: somebody trains on, or edited the script."""


@dataclass(frozen=True, slots=True)
class FitChoice:
    """The fit of the job that a fit is, or None if it is another one; and what to say of it."""

    record: FitRecord | None
    differs: tuple[str, ...] = ()
    """What is not as when the chosen fit, or the nearest one, began."""
    doubt: str = ""
    """Why it begins afresh although the job has fits that it might be; empty without doubt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """What this process has fitted so far: ids of fits."""

    ended: Collection[str] = ()
    """Those that ended well, or still run: no other fit of the process is one of them."""
    failed: Collection[str] = ()
    """Those that an exception ended: the process may try again from another line."""


def choose_fit(
    identity: FitIdentity, records: Sequence[FitRecord], process: Process, name: str = ""
) -> FitChoice:
    """Decide which of `records` (in the order in which they began) the fit `identity` is.

    `name` is the user's for it; one that none has may have been given since it began.
    """
    if name:
        own = [one for one in records if name in {one.name, one.id}]
        if own:
            return FitChoice(own[0], _told(identity, own[0]))
        records = [one for one in records if not one.name]
    open_ = [one for one in records if one.id not in process.ended]
    if not open_:
        return FitChoice(None)
    same = [one for one in open_ if not _hard(identity.differences(one.identity))]
    if same:
        return _among(identity, same)
    alike = _explained(identity, open_, process)
    if len(alike) == 1:
        return FitChoice(alike[0], _told(identity, alike[0]))
    left = [one for one in open_ if not one.ended]
    if not left:
        return FitChoice(None)
    near = min(left, key=lambda one: len(_hard(identity.differences(one.identity))))
    differs = _told(identity, near)
    return FitChoice(
        None, differs, f"{_title(near)}, which did not end, had another {', '.join(differs)}"
    )


def _among(identity: FitIdentity, same: list[FitRecord]) -> FitChoice:
    """Choose among fits that nothing tells from this one but how long they train, and seeds."""
    seeded = [one for one in same if "seed" not in identity.differences(one.identity)]
    if not seeded and all(_is_a_member(identity, one) for one in same):
        return FitChoice(None, ("seed",), f"{_title(same[-1])} ended, and had another seed")
    same = [one for one in same if one in seeded] or same
    same = [one for one in same if not _named(identity.differences(one.identity), "limits")] or same
    if len(same) > 1:
        names = ", ".join(map(_title, same))
        return FitChoice(None, (), f"it may be any of {names}")
    return FitChoice(same[0], _told(identity, same[0]))


def _is_a_member(identity: FitIdentity, one: FitRecord) -> bool:
    """Whether one script has trained it, and goes on with another seed: an ensemble."""
    return one.ended and one.closed and "program" not in identity.differences(one.identity)


def _explained(
    identity: FitIdentity, records: Sequence[FitRecord], process: Process
) -> list[FitRecord]:
    """Fits that did not end and may be this one, though something tells them from it."""
    found = []
    for one in records:
        differs = _hard(identity.differences(one.identity))
        edited = "program" in identity.differences(one.identity)
        alone = len(records) == 1
        if one.ended:
            # trained on by an edited script: only where it stands in it may differ
            likely = edited and alone and differs == ["place"]
        elif one.id in process.failed:
            likely = differs == ["place"]  # tried again, from another line
        else:
            # An edit explains all. Without one, data may be drawn anew at each start.
            likely = edited or (alone and differs == ["data"])
        if likely:
            found.append(one)
    return found


def _hard(differs: Iterable[str]) -> list[str]:
    """What tells two fits of one unchanged script apart."""
    return [name for name in differs if name.partition(".")[0] not in _MAY_BE_EDITED]


def _named(differs: Iterable[str], part: str) -> bool:
    return any(name.partition(".")[0] == part for name in differs)


def _told(identity: FitIdentity, record: FitRecord) -> tuple[str, ...]:
    """What differs, as far as a person can do something about it."""
    left_out = {"program"} if record.ended else {"program", "seed"}
    return tuple(name for name in identity.differences(record.identity) if name not in left_out)


def _title(record: FitRecord) -> str:
    title = record.name or record.id
    return f"the fit {title!r}" if title else "the first fit"
