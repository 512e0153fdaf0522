"""Read the indexes of manifests that the publishers of jobs leave in a store."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from bt_lightning.manifest_index import indexed_manifests
from bt_lightning.path_layout import folders_of, manifests_index, under
from bt_lightning.store.interface import read_any
from bt_lightning.store.transfer.parallel_reads import in_parallel

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Any

    from bt_lightning.store.interface import ObjectInfo, Store

log = logging.getLogger(__name__)

_READERS: Final = 16
_WORTH: Final = 3
"""Manifests of a node from which on its index is read instead."""


def indexed_summaries(
    store: Store,
    prefix: str,
    indexes: Collection[str],
    manifests: Mapping[str, ObjectInfo],
    unread: Collection[str],
) -> dict[str, dict[str, Any]]:
    """Folder -> the summary of its manifest, for those of `unread` that an index has.

    `indexes` are the folders with an index, `manifests` what the listing says of the manifests: an
    entry counts only for an object of the same size and MD5.

    Raises:
        StoreError: the store refused.
    """
    by_index: dict[str, list[str]] = {}
    for folder in unread if indexes else ():
        node = next((one for one in (*folders_of(folder), "") if one in indexes), None)
        if node is not None:
            by_index.setdefault(node, []).append(folder)
    nodes = [node for node, folders in by_index.items() if len(folders) >= _WORTH]
    keys = [manifests_index(under(prefix, node) if node else prefix) for node in nodes]
    found = {}
    read = in_parallel(lambda key: read_any(store, key), keys, _READERS)
    for node, key, data in zip(nodes, keys, read, strict=True):
        if data is None:
            continue  # deleted since the listing
        try:
            entries = indexed_manifests(data)
        except ValueError as error:
            log.warning("%s/%s is not used: %s", store.name, key, error)
            continue
        cut = len(node) + 1 if node else 0
        for folder in by_index[node]:
            entry, info = entries.get(folder[cut:]), manifests[folder]
            if entry is not None and (entry.size, entry.md5) == (info.size, info.version):
                found[folder] = entry.summary
    return found
