"""Removals that somebody asks the owner of a job's part of a store for.

Only who has the lease deletes there; while a job runs, that is its worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.path_layout import removals_folder

if TYPE_CHECKING:
    from bt_lightning.store.interface import Store


def request_stored_removal(store: Store, prefix: str, digest: str) -> None:
    """Ask for the checkpoint with the manifest digest `digest` to be removed, disk and store."""
    store.put(f"{removals_folder(prefix)}/{digest}", b"\n")


def requested_stored_removals(store: Store, prefix: str) -> frozenset[str]:
    """Digests of what was asked for: one listing."""
    folder = removals_folder(prefix)
    return frozenset(info.key.rpartition("/")[2] for info in store.list(folder))


def forget_removals(store: Store, prefix: str, digests: frozenset[str]) -> None:
    """These are done, or in the owner's hands."""
    folder = removals_folder(prefix)
    store.delete([f"{folder}/{digest}" for digest in digests])
