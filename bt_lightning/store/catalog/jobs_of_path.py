"""The jobs of a store that nobody named, by the path of the directory that each began in."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_limits import LINE, LINES_BYTES, RECORD
from bt_lightning.fit_ledger import PARTS, ledger_part
from bt_lightning.job_choice import path_of_made_name
from bt_lightning.path_layout import job_prefix, jobs_of_path, node_of, under
from bt_lightning.store.transfer.parallel_reads import in_parallel

if TYPE_CHECKING:
    from bt_lightning.store.interface import Store

_MOST: Final = 64
"""Jobs of one path that are looked at: those that began last, by their names."""
_READERS: Final = 16
_FULL_BYTES: Final = RECORD.size - LINE.size
"""A part of a ledger with another one behind it is larger: a line did not fit."""


def note_job_of_path(store: Store, prefix: str) -> None:
    """Let the job at `prefix` be found by its path, if its name was made; idempotent.

    Raises:
        StoreError: the store refused.
    """
    node = node_of(prefix)
    name = path_of_made_name(node[1]) if node is not None else None
    if node is not None and name is not None:
        store.put(f"{jobs_of_path(node[0], name)}/{node[1]}", b"\n")


def names_of_path(store: Store, project: str, name_of_path: str) -> list[str]:
    """The jobs that began in this path, the last one first; some may have been deleted since.

    Raises:
        StoreError: the store refused.
    """
    keys = (info.key for info in store.list(jobs_of_path(project, name_of_path)))
    names = {key.rpartition("/")[2] for key in keys}
    own = [name for name in names if path_of_made_name(name) == name_of_path]
    return sorted(own, reverse=True)[:_MOST]


def find_jobs_of_path(store: Store, prefix: str, name_of_path: str, older: str) -> dict[str, bytes]:
    """Job -> ledger of its fits, of the project and the node that `prefix` names.

    `older` is the name that such a job had in older versions. One listing, and a small read a job;
    of many long ledgers, those of the jobs that began last.

    Raises:
        StoreError: the store refused.
    """
    node = node_of(prefix)
    if node is None:
        return {}
    project, _, rank = node
    names = [*names_of_path(store, project, name_of_path), older]
    places = [job_prefix(project, name, rank) for name in names]
    begun = in_parallel(lambda place: _part(store, place, 1), places, _READERS)
    found, left = {}, LINES_BYTES
    for name, place, first in zip(names, places, begun, strict=True):
        if first and left > 0:
            found[name] = ledger = first + _rest(store, place, first)
            left -= len(ledger)
    return found


def read_fit_ledger(store: Store, prefix: str) -> bytes | None:
    """The store's ledger of fits of one job and node; None if there is none that can be read.

    Raises:
        StoreError: the store refused.
    """
    first = _part(store, prefix, 1)
    return None if first is None else first + _rest(store, prefix, first)


def _rest(store: Store, prefix: str, first: bytes) -> bytes:
    """The parts behind the first, which was full if there are any."""
    parts: list[bytes] = []
    while len(parts) + 1 < PARTS and len(parts[-1] if parts else first) > _FULL_BYTES:
        part = _part(store, prefix, len(parts) + 2)
        if part is None:
            break
        parts.append(part)
    return b"".join(parts)


def _part(store: Store, prefix: str, number: int) -> bytes | None:
    with contextlib.suppress(CheckpointCorruptError):  # none of ours: the manifests tell as well
        return store.read(under(prefix, ledger_part(number)))
    return None
