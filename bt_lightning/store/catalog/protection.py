"""Protecting a checkpoint of a store from deletion, by whomever."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointNotFoundError, CheckpointProtectedError
from bt_lightning.layout import DELETING, MANIFEST, MARKER, PROTECTION
from bt_lightning.store.interface import read_any

if TYPE_CHECKING:
    from bt_lightning.protection_record import Protection
    from bt_lightning.store.interface import Store


def protect_stored(store: Store, base: str, protection: Protection) -> None:
    """Protect the checkpoint at the key `base`; what an earlier protection said is replaced.

    When this returns nothing deletes the checkpoint, not even what had begun to look at it.

    Raises:
        CheckpointNotFoundError: it is not there, or is just being deleted.
        StoreError: the store refused.
    """
    if read_any(store, f"{base}/{MANIFEST}") is not None:
        before = read_any(store, f"{base}/{PROTECTION}")
        store.put(f"{base}/{PROTECTION}", protection.to_bytes())
        if before is not None or not _going(store, base):
            return
        store.delete([f"{base}/{PROTECTION}"])
    msg = f"{store.name}/{base} cannot be protected: it is being deleted, or was"
    raise CheckpointNotFoundError(msg)


def unprotect_stored(store: Store, base: str) -> None:
    """Let the checkpoint at the key `base` be deleted again; idempotent."""
    store.delete([f"{base}/{PROTECTION}"])


def is_protected_stored(store: Store, base: str) -> bool:
    """Whether somebody protected what is at the key `base`."""
    return read_any(store, f"{base}/{PROTECTION}") is not None


def protected_error(name: str, protection: Protection) -> CheckpointProtectedError:
    """The error of who would delete `name` all the same."""
    who = f" by {protection.by}" if protection.by else ""
    why = f": {protection.why}" if protection.why else ""
    msg = f"{name} is protected{who}{why}. Use `checkpoints unprotect` before deleting it"
    return CheckpointProtectedError(msg)


def _going(store: Store, base: str) -> bool:
    deleting = read_any(store, f"{base}/{MARKER}") == DELETING
    return deleting or read_any(store, f"{base}/{MANIFEST}") is None
