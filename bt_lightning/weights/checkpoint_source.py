"""Weights of a checkpoint, `bt://project[@job][/checkpoint]`: every block verified as it comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bt_lightning.localdir.digest import Hasher
from bt_lightning.manage.download_copy import CountingReader
from bt_lightning.path_layout import MANIFEST
from bt_lightning.store.transfer.checkpoint_reader import StoreReader
from bt_lightning.store.transfer.resumable_download import download_files
from bt_lightning.uri import BtUri
from bt_lightning.weights.weight_source import WeightFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from bt_lightning.store.catalog.projects import CatalogEntry
    from bt_lightning.store.interface import Store

_DIGEST: Final = "xxh3_128"


def bt_uri(found: CatalogEntry) -> BtUri:
    """The URL of a checkpoint, with its job."""
    at = found.location
    rank = f"rank-{at.node_rank}/" if at.node_rank else ""
    return BtUri(at.project, at.job, f"{rank}{found.checkpoint_id}")


class CheckpointSource:
    """A committed checkpoint of a store; with all its files and its manifest it is one again."""

    large_at_once = 2

    def __init__(self, store: Store, found: CatalogEntry) -> None:
        self._uri = bt_uri(found)
        self._data = found.data
        self._reader = StoreReader(store, "", found.location.base)
        self._store_name = store.name

    @property
    def name(self) -> str:
        """The URL with its job and checkpoint."""
        return str(self._uri)

    def files(self) -> list[WeightFile]:
        """What the manifest names, and the manifest."""
        hasher = Hasher()
        hasher.update(self._data)
        entries = (*self._reader.manifest.files, hasher.entry(MANIFEST))
        return [
            WeightFile(
                entry.path,
                entry.size,
                f"{_DIGEST} {self._store_name} {entry.xxh3_128} {entry.size}",
                {_DIGEST: entry.xxh3_128},
            )
            for entry in entries
        ]

    def fetch(
        self, file: WeightFile, folder: Path, on_bytes: Callable[[int], object]
    ) -> tuple[Path, Mapping[str, str]]:
        """Download the blocks that are not there yet."""
        if file.path == MANIFEST:
            target = folder / MANIFEST
            target.write_bytes(self._data)
            on_bytes(len(self._data))
            return target, file.expected
        entry = self._reader.manifest.entry(file.path)
        assert entry is not None, "it was listed"
        download_files(CountingReader(self._reader, on_bytes), folder, (entry,))
        return folder / file.path, file.expected
