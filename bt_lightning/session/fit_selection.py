"""Selects which of the job's fits this fit is, and keeps the ledger; on the rank that writes."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from bt_lightning.errors import InvalidSettingError
from bt_lightning.fit_choice import HOW_TO_NAME, FitChoice, Process, choose_fit
from bt_lightning.fit_identity import FitIdentity
from bt_lightning.fit_ledger import FitRecord, merged, named, new_fit, read_ledger
from bt_lightning.localdir.fit_ledger_file import note_fits, read_fits

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from bt_lightning.manifest import Manifest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitRequest:
    """A fit that is to begin."""

    identity: FitIdentity = field(default_factory=FitIdentity)
    name: str = ""
    """The user's name for it."""
    after: str | None = None
    """Folder of the fit that this one goes on from, in the same process; None: from none."""


@dataclass(frozen=True)
class SelectedFit:
    """The fit of the job that a fit is."""

    record: FitRecord
    was: FitRecord | None
    """As it began before; None if there is nothing of its own to resume from."""
    is_another: bool = False
    """Whether it is not the first of the job."""
    follows: bool = False
    """Whether this process has fitted before."""
    stands: bool = False
    """Whether the state of the process is the newest that there is of it."""

    def owns(self, manifest: Manifest) -> bool:
        """Whether a checkpoint is of this fit."""
        return manifest.fit == self.record.id

    def is_complete(self, step: int | None) -> bool:
        """Whether its state at optimizer step `step` is its last, and it has the same limits."""
        was = self.was
        if was is None or not was.ended or step != was.end_step:
            return False
        differs = self.record.identity.differences(was.identity)
        return not any(name.startswith("limits.") for name in differs)

    def facts(self) -> dict[str, Any]:
        """What the manifest of each of its checkpoints says of it."""
        one = self.record
        entries = {"id": one.id, "name": one.name, "folder": one.folder}
        return {**entries, "identity": one.identity.to_json()}


class ProcessFits:
    """The fits of this process in one checkpoint directory."""

    def __init__(self) -> None:
        self._ended: set[str] = set()
        self._failed: set[str] = set()

    def begin(self, name: str) -> None:
        """A fit has been selected: no other one of this process is it."""
        self._failed.discard(name)
        self._ended.add(name)

    def fail(self, name: str) -> None:
        """A fit has failed, or did not begin: the process may try again."""
        self._ended.discard(name)
        self._failed.add(name)

    @property
    def state(self) -> Process:
        """What `choose_fit` asks for."""
        return Process(ended=frozenset(self._ended), failed=frozenset(self._failed))


process_fits: dict[Path, ProcessFits] = {}
"""By checkpoint directory."""


@dataclass(frozen=True, kw_only=True)
class JobRecords:
    """What disk and store tell of the job's fits."""

    local: Sequence[Manifest]
    stored: Sequence[Manifest]
    stored_ledger: bytes | None = None
    """The store's ledger, which counts where the disk has lost its own."""


def select_fit(root: Path, request: FitRequest, job: JobRecords) -> SelectedFit:
    """Select the fit, and note in the ledger that it begins.

    Raises:
        InvalidSettingError: another fit of this process has its name.
    """
    own = read_fits(root)
    ledger = read_ledger((job.stored_ledger or b"").splitlines())
    records = merged(own, ledger, _of_manifests((*job.local, *job.stored)))
    process = process_fits.setdefault(root, ProcessFits())
    follows = bool(process.state.ended or process.state.failed)
    name = _free_name(request, process.state)
    choice = choose_fit(request.identity, records, process.state, name)
    if choice.record is None:
        record = new_fit(name, request.identity, records, request.after)
        stands = request.after is not None
    else:
        stands = request.after is not None and choice.record.id in process.state.failed
        record = replace(named(choice.record, name), identity=request.identity)
    _say(choice, record)
    process.begin(record.id)
    lines = [one.began() for one in records[len(own) :]]  # of the store only: the disk was lost
    lines += [one.at_end(one.end_step) for one in records[len(own) :] if one.ended]
    lines += [one.at_close() for one in records[len(own) :] if one.closed]
    if record != choice.record:
        lines.append(record.began())  # it goes on under another name, for longer, or as it is now
    _note(root, *lines)
    another = bool(records) and record.id != records[0].id
    return SelectedFit(record, choice.record, another, follows, stands)


def end_fit(root: Path, fit: SelectedFit, step: int | None) -> None:
    """Note that a fit has ended well, at optimizer step `step`; None: that it has failed."""
    if step is not None:
        _note(root, fit.record.at_end(step))
    else:
        process_fits.setdefault(root, ProcessFits()).fail(fit.record.id)


def close_fit(root: Path, fit: SelectedFit) -> None:
    """Note that a fit that ended well goes back to the script."""
    _note(root, fit.record.at_close())


def _free_name(request: FitRequest, process: Process) -> str:
    name, number = request.name, 2
    if not name or name not in process.ended:
        return name
    if request.after is None:
        msg = (
            f"fit_name is {name!r}, which an earlier fit of this script has: give each fit a name"
            " of its own, such as f'fold-{fold}'"
        )
        raise InvalidSettingError(msg)
    while f"{name}-{number}" in process.ended:
        number += 1
    return f"{name}-{number}"


def _of_manifests(manifests: Iterable[Manifest]) -> list[FitRecord]:
    """The fits that checkpoints tell of; nothing is known of those of older versions."""
    found: dict[str, FitRecord] = {}
    for manifest in manifests:
        said = manifest.origin.get("fit")
        known = said if isinstance(said, dict) else {}
        line = {"fit": manifest.fit, "name": "", "folder": "", "identity": {}, **known}
        found.update((one.id, one) for one in read_ledger([json.dumps(line).encode()]))
    return list(found.values())


def _say(choice: FitChoice, record: FitRecord) -> None:
    differs, folder = ", ".join(choice.differs), record.folder or "the directory itself"
    if choice.doubt:
        log.warning("begin afresh, in %s: %s; %s", folder, choice.doubt, HOW_TO_NAME)
    elif choice.record is None and record.folder:
        log.info("another fit of the job, saved below %s", folder)
    elif choice.record is not None and differs:
        log.warning("this fit goes on although the script has another %s", differs)


def _note(root: Path, *lines: bytes) -> None:
    if not lines:
        return
    try:
        note_fits(root, *lines)
    except OSError as error:  # a full disk; the manifests tell of the fit as well
        log.warning("the ledger of fits could not be written: %s", error)
