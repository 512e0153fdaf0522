"""Protect a checkpoint in a store from every deletion, until it is unprotected."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointNotFoundError, CheckpointProtectedError
from bt_lightning.path_layout import DELETING, MANIFEST, MARKER, PROTECTION
from bt_lightning.store.interface import read_any

if TYPE_CHECKING:
    from bt_lightning.protection_record import Protection
    from bt_lightning.store.interface import Store


def protect_stored(store: Store, base: str, protection: Protection) -> None:
    """Protect the checkpoint at the key prefix `base`; an earlier protection is replaced.

    When this returns, nothing deletes the checkpoint, not even a deletion that has already begun.

    Raises:
        CheckpointNotFoundError: the checkpoint is not there, or is being deleted.
        StoreError: the store refused.
    """
    if read_any(store, f"{base}/{MANIFEST}") is not None:
        before = read_any(store, f"{base}/{PROTECTION}")
        store.put(f"{base}/{PROTECTION}", protection.to_bytes())
        if before is not None or not _is_being_deleted(store, base):
            return
        store.delete([f"{base}/{PROTECTION}"])
    msg = f"{store.name}/{base} cannot be protected: it is being deleted, or was"
    raise CheckpointNotFoundError(msg)


def unprotect_stored(store: Store, base: str) -> None:
    """Remove the protection of the checkpoint at the key prefix `base`; idempotent."""
    store.delete([f"{base}/{PROTECTION}"])


def is_protected_stored(store: Store, base: str) -> bool:
    """Whether the checkpoint at the key prefix `base` is protected."""
    return read_any(store, f"{base}/{PROTECTION}") is not None


def protected_error(name: str, protection: Protection) -> CheckpointProtectedError:
    """The error for a deletion of the protected checkpoint `name`."""
    who = f" by {protection.by}" if protection.by else ""
    why = f": {protection.why}" if protection.why else ""
    models = ", ".join(one.model for one in protection.deployments)
    deployed = f", since it is deployed as {models}" if models else ""
    words = [*(["unprotect"] if protection.is_own else []), *(["undeploy"] if models else [])]
    use = " and ".join(f"`checkpoints {word}`" for word in words)
    msg = f"{name} is protected{who}{why}{deployed}. Use {use} before deleting it"
    return CheckpointProtectedError(msg)


def _is_being_deleted(store: Store, base: str) -> bool:
    deleting = read_any(store, f"{base}/{MARKER}") == DELETING
    return deleting or read_any(store, f"{base}/{MANIFEST}") is None
