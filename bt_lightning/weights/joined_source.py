"""Weights of a sharded checkpoint as a server reads them: the shards are joined as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bt_lightning.localdir.digest import Hasher
from bt_lightning.localdir.fsync import write_file
from bt_lightning.manage.checkpoint_items import CheckpointItem
from bt_lightning.manage.download_copy import CountingReader, serving_entries
from bt_lightning.manage.job_checkpoints import StoreCheckpoints
from bt_lightning.manage.joined_file import write_joined
from bt_lightning.manage.serving_weights import MOST_FILE_BYTES, plan_serving_files
from bt_lightning.manage.verified_blocks import VerifiedBlocks
from bt_lightning.manage.whole_tensors import read_state
from bt_lightning.store.transfer.resumable_download import download_files
from bt_lightning.weights.checkpoint_source import bt_uri
from bt_lightning.weights.file_digests import BLOCKS
from bt_lightning.weights.weight_source import WeightFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from bt_lightning.store.catalog.projects import CatalogEntry
    from bt_lightning.store.interface import Store

_DIGEST: Final = "xxh3_128"


class JoinedSource:
    """The weights and configuration of a sharded checkpoint, `bt://project@job/checkpoint`.

    What only training reads is not listed: the mount is a folder for `from_pretrained`, and no
    checkpoint.
    """

    large_at_once = 2

    def __init__(self, store: Store, found: CatalogEntry) -> None:
        """Read the index and the headers of all shards.

        Raises:
            CheckpointNotFoundError: it has no weights to serve.
            CheckpointCorruptError: shards are missing or damaged.
            StoreError: the store refused.
        """
        at = found.location
        source = StoreCheckpoints(store, at.project, at.job)
        item = CheckpointItem(
            project=at.project,
            job=at.job,
            node_rank=at.node_rank,
            name=found.checkpoint_id,
            where=at.base,
            manifest=found.manifest,
            protected=False,
        )
        self.name = str(bt_uri(found))
        self._reader = source.reader(item)
        self._manifest = found.manifest
        self._entries = {entry.path: entry for entry in serving_entries(found.manifest)}
        state = read_state(self._reader, item)
        plans, self._small = plan_serving_files(source, item, state, MOST_FILE_BYTES)
        self._plans = {plan.path: plan for plan in plans}

    def files(self) -> list[WeightFile]:
        """Configuration and tokenizer as they are, and the files of weights that will be made."""
        own = [
            WeightFile(
                entry.path,
                entry.size,
                f"{_DIGEST} {self._reader.name} {entry.xxh3_128} {entry.size}",
                {_DIGEST: entry.xxh3_128},
            )
            for entry in self._entries.values()
        ]
        digest = self._manifest.digest
        sizes = {path: plan.size for path, plan in self._plans.items()}
        joined = [
            WeightFile(path, size, f"{BLOCKS} {digest} {path}", {BLOCKS: digest})
            for path, size in sizes.items()
        ]
        return [*own, *joined, *(self._written(path) for path in self._small)]

    def fetch(
        self, file: WeightFile, folder: Path, on_bytes: Callable[[int], object]
    ) -> tuple[Path, Mapping[str, str]]:
        """Download a file, or join one; what an interrupted call has joined is joined anew.

        Each block of a shard is compared with the manifest when it is read.
        """
        target = folder / file.path
        reader = CountingReader(self._reader, on_bytes)
        entry, plan = self._entries.get(file.path), self._plans.get(file.path)
        if entry is not None:
            download_files(reader, folder, (entry,))
            return target, file.expected
        target.unlink(missing_ok=True)
        if plan is not None:
            blocks = VerifiedBlocks(reader, self._manifest.files)
            write_joined(target, plan, blocks)
            return target, file.expected
        write_file(target, file.path, [self._small[file.path]])
        on_bytes(file.size)
        return target, file.expected

    def _written(self, path: str) -> WeightFile:
        hasher = Hasher()
        hasher.update(self._small[path])
        entry = hasher.entry(path)
        return WeightFile(path, entry.size, "", {_DIGEST: entry.xxh3_128})
