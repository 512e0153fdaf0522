"""The ledger of a job's fits: which began, and which ended (docs/format.md). Pure.

A file of lines that is only appended to: one line when a fit begins, one when it ends well, and one
when it goes back to the script.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.errors import CheckpointCorruptError, InvalidSettingError
from bt_lightning.file_limits import LINE, RECORD, parse_json
from bt_lightning.fit_identity import FitIdentity

if TYPE_CHECKING:
    from collections.abc import Iterable

LEDGER: Final = ".bt_lightning-fits"
"""Name of the ledger, and of its first part, below the job's `rank-<node>` in a store."""
PARTS: Final = 22
"""Most parts in a store: `LINES_BYTES`, if each lacks nearly a line of `RECORD.size`."""
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRecord:
    """One fit of a job."""

    id: str
    """Unique in the job, and never changed: the user's name when it first began, or one that was
    made; empty for a first one without a name. Each of its checkpoints says it."""
    name: str = ""
    """The user's name for it, if it has one."""
    folder: str = ""
    """Folder of its checkpoints below the root; empty for the root itself, the first fit's."""
    identity: FitIdentity = field(default_factory=FitIdentity)
    ended: bool = False
    """Whether it ended well."""
    end_step: int = 0
    """The optimizer step at which it ended."""
    closed: bool = False
    """Whether it went back to the script after that: a kill may fall into its last uploads."""

    def began(self) -> bytes:
        """The line that is written when it begins."""
        return _line(
            fit=self.id, name=self.name, folder=self.folder, identity=self.identity.to_json()
        )

    def at_end(self, step: int) -> bytes:
        """The line that is written when it has ended well, at optimizer step `step`."""
        return _line(fit=self.id, ended=step)

    def at_close(self) -> bytes:
        """The line that is written when it goes back to the script."""
        return _line(fit=self.id, closed=True)


def read_ledger(lines: Iterable[bytes]) -> tuple[FitRecord, ...]:
    """The fits, in the order in which each first began; a line that cannot be read is left out.

    A fit that began again is as it began last.
    """
    found: dict[str, FitRecord] = {}
    for line in lines:
        try:
            record = _record(parse_json(line, LINE), found)
        except CheckpointCorruptError:
            continue  # half written, or another program's: the manifests tell of fits as well
        found[record.id] = record
    return tuple(found.values())


def ledger_part(number: int) -> str:
    """Name of a part of the ledger in a store; counted from 1."""
    return LEDGER if number == 1 else f"{LEDGER}-{number}"


def in_parts(lines: Iterable[bytes], size: int = RECORD.size) -> list[bytes]:
    """The ledger in parts of whole lines, of at most `size` bytes each; `PARTS` at most.

    What is appended later changes the last part only.
    """
    parts, current = [], bytearray()
    for line in lines:
        whole = line if line.endswith(b"\n") else line + b"\n"
        if current and len(current) + len(whole) > size:
            parts.append(bytes(current))
            current.clear()
        current += whole
    return [*parts, bytes(current)][:PARTS] if current else parts


def merged(*ledgers: Iterable[FitRecord]) -> tuple[FitRecord, ...]:
    """The fits of several ledgers of one job; what an earlier one says of a fit counts."""
    found: dict[str, FitRecord] = {}
    for record in (one for ledger in ledgers for one in ledger):
        found.setdefault(record.id, record)
    return tuple(found.values())


def new_fit(
    name: str, identity: FitIdentity, records: Iterable[FitRecord], folder: str | None = None
) -> FitRecord:
    """Another fit of the job: the first saves to the root, and each other one to its own folder.

    Unless it is a Trainer's next one, which goes on saving to the `folder` of that Trainer.
    """
    ids = {one.id for one in records}
    if not ids:
        return FitRecord(id=name, name=name, identity=identity)
    made, number = name, len(ids) + 1
    while not made or made in ids:
        made, number = f"fit-{number}", number + 1
    own = made if folder is None else folder
    return FitRecord(id=made, name=name, folder=own, identity=identity)


def named(record: FitRecord, name: str) -> FitRecord:
    """The fit under the name that the user gave it since; its folder stays."""
    return replace(record, name=name) if name else record


def check_fit_name(name: str) -> str:
    """Return the name of a fit if it can be a folder.

    Raises:
        InvalidSettingError: it is empty, too long, or has other characters.
    """
    if not _NAME.fullmatch(name):
        msg = (
            f"fit_name is {name[:50]!r}, expected a name of up to 100 letters, digits, '.', '_'"
            " and '-', such as 'fold-2'"
        )
        raise InvalidSettingError(msg)
    return name


def _line(**entries: Any) -> bytes:
    return json.dumps(entries, sort_keys=True).encode("ascii") + b"\n"


def _record(payload: object, known: dict[str, FitRecord]) -> FitRecord:
    if not isinstance(payload, dict):
        msg = "expected an object"
        raise CheckpointCorruptError(msg)
    made = _name_of(payload, "fit")
    step = payload.get("ended")
    if payload.get("closed") is True and made in known:
        return replace(known[made], closed=True)
    if step is None:
        identity = FitIdentity.from_json(payload.get("identity"))
        name, folder = _name_of(payload, "name"), _name_of(payload, "folder")
        return FitRecord(id=made, name=name, folder=folder, identity=identity)
    if not isinstance(step, int) or isinstance(step, bool) or step < 0 or made not in known:
        msg = "expected the step at which a fit ended that had begun"
        raise CheckpointCorruptError(msg)
    return replace(known[made], ended=True, end_step=step)


def _name_of(payload: dict[str, Any], entry: str) -> str:
    """A name, which may be a folder: so it leads nowhere else."""
    value = payload.get(entry)
    if not isinstance(value, str) or (value and not _NAME.fullmatch(value)):
        msg = f"expected a name, found {entry} {value!r:.50}"
        raise CheckpointCorruptError(msg)
    return value
