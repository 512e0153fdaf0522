"""The jobs of a store that nobody named, by the path of the directory that each began in."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.fit_ledger import LEDGER
from bt_lightning.job_choice import path_of_made_name
from bt_lightning.path_layout import job_prefix, jobs_of_path, node_of, under
from bt_lightning.store.transfer.parallel_reads import in_parallel

if TYPE_CHECKING:
    from bt_lightning.store.interface import Store

_MOST: Final = 64
"""Jobs of one path that are looked at: those that began last, by their names."""
_READERS: Final = 16


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

    `older` is the name that such a job had in older versions. One listing, and a small read a job.

    Raises:
        StoreError: the store refused.
    """
    node = node_of(prefix)
    if node is None:
        return {}
    project, _, rank = node
    names = [*names_of_path(store, project, name_of_path), older]
    ledgers = in_parallel(
        lambda name: read_fit_ledger(store, job_prefix(project, name, rank)), names, _READERS
    )
    return {name: ledger for name, ledger in zip(names, ledgers, strict=True) if ledger}


def read_fit_ledger(store: Store, prefix: str) -> bytes | None:
    """The store's ledger of fits of one job and node; None if there is none that can be read.

    Raises:
        StoreError: the store refused.
    """
    with contextlib.suppress(CheckpointCorruptError):  # none of ours: the manifests tell as well
        return store.read(under(prefix, LEDGER))
    return None
