"""Delete a checkpoint from a store: put the marker, delete the manifest, the files, the marker.

Without its manifest it is no checkpoint; what a killed deletion leaves has a marker, to be swept.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from bt_lightning.errors import StorePermanentError
from bt_lightning.path_layout import (
    DELETING,
    MANIFEST,
    MARKER,
    PROTECTION,
    PUBLISHING,
    part_name,
    under,
)
from bt_lightning.store.interface import read_any

if TYPE_CHECKING:
    from collections.abc import Collection

    from bt_lightning.store.interface import Store

log = logging.getLogger(__name__)


def unpublish(store: Store, prefix: str, folder: str, keep: Collection[str] = ()) -> bool:
    """Delete one checkpoint, or the rest of one, from the store; idempotent.

    The objects `keep` stay, with a marker beside them: their publication will be resumed. Returns
    False, and deletes nothing, if the checkpoint is protected. A folder with neither manifest nor
    marker holds the user's files, which stay.
    """
    base = under(prefix, folder)
    keys = own_keys(store, base)
    if not {f"{base}/{name}" for name in (MANIFEST, MARKER, part_name(MARKER))}.intersection(keys):
        return True
    manifest, marker, protection = (f"{base}/{n}" for n in (MANIFEST, MARKER, PROTECTION))
    store.put(marker, DELETING)
    # The marker first: of a deletion and a protection at a time, one at least sees the other.
    if manifest in keys and read_any(store, protection) is not None:
        store.delete([marker])
        return False
    store.delete([manifest])
    store.delete([key for key in keys if key not in {manifest, marker, *keep}])
    if set(keys).intersection(keep):
        store.put(marker, PUBLISHING)
    else:
        store.delete([marker])
    return True


def own_keys(store: Store, base: str) -> list[str]:
    """Keys of the checkpoint at `base`, without those of checkpoints below it (`a` and `a/b`)."""
    keys = [info.key for info in store.list(base)]
    ends = (f"/{MANIFEST}", f"/{MARKER}")
    nested = {
        key.rpartition("/")[0] + "/"
        for key in keys
        if key.endswith(ends) and key.rpartition("/")[0] != base
    }
    return [key for key in keys if not key.startswith(tuple(nested))]


def give_up_uploads(store: Store, prefix: str, keep: Collection[str]) -> None:
    """Call `Store.abandon`; if the store refuses, log it: leftovers cost money, not checkpoints.

    Raises:
        StoreTransientError: the store did not answer.
    """
    try:
        store.abandon(prefix, keep)
    except StorePermanentError as error:
        log.warning("parts of interrupted uploads stay in the store: %s", error)
