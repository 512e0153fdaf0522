"""Removals that somebody asks the owner of a job's part of a store for.

Only who has the lease deletes there; while a job runs, that is its worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bt_lightning.path_layout import is_digest, removals_folder
from bt_lightning.removal_requester import Requester
from bt_lightning.store.interface import read_any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bt_lightning.store.interface import Store

_SAYS_NOTHING: Final = 1
"""Bytes of a request that does not say who asks: a line feed. A command of a person's wrote it."""


def request_stored_removal(
    store: Store, prefix: str, digest: str, by: Requester = Requester.PERSON
) -> None:
    """Ask for the checkpoint with the manifest digest `digest` to be removed, disk and store."""
    store.put(f"{removals_folder(prefix)}/{digest}", by.to_bytes())


def requested_stored_removals(store: Store, prefix: str) -> dict[str, Requester]:
    """Digests of what was asked for, and who asked: one listing, and a read for each."""
    folder = removals_folder(prefix)
    found = {}
    for info in store.list(folder):
        digest = info.key.rpartition("/")[2]
        if not is_digest(digest):
            continue  # nobody asked for anything by that
        data = read_any(store, info.key) if info.size > _SAYS_NOTHING else b""
        if data is not None:  # else it was taken back just now
            found[digest] = Requester.from_bytes(data, Requester.PERSON)
    return found


def forget_removals(store: Store, prefix: str, digests: Iterable[str]) -> None:
    """These are done, or in the owner's hands."""
    folder = removals_folder(prefix)
    store.delete([f"{folder}/{digest}" for digest in digests])
