"""Parts that meet in the store: what rank 0's worker does for all, and how a worker gathers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.store.retry import LateStore, RetryingStore
from bt_lightning.store.transfer.store_parts import PartsInStore
from bt_lightning.worker.gather_in_store import GatherInStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.manifest import Manifest
    from bt_lightning.sharding.save_part import SaveKey
    from bt_lightning.store.interface import Store
    from bt_lightning.store.transfer.store_claims import Claim
    from bt_lightning.worker.free_disk_space import DiskSpaceMaker
    from bt_lightning.worker_messages import WorkerConfig


class LeadInStore:
    """Claims, commits and ends saves on the publisher's thread; rank 0's worker only.

    Each call raises a `StoreError` if the store refuses, or nothing is published yet.
    """

    def __init__(self, space: DiskSpaceMaker) -> None:
        self._space = space

    def claim(self, key: SaveKey, checkpoint_id: str, after: int) -> Claim:
        """As `ShardedTasks.claim_parts`."""
        return self._space.publisher().perform(
            lambda tasks: tasks.claim_parts(key, checkpoint_id, after)
        )

    def commit(self, claim: Claim, manifest: Manifest) -> None:
        """As `ShardedTasks.commit_parts`; what is superseded by it goes."""
        publisher = self._space.publisher()
        publisher.perform(lambda tasks: tasks.commit_parts(claim, manifest))
        publisher.wake()

    def end(self, key: SaveKey, outcome: bytes) -> None:
        """As `ShardedTasks.end_parts`."""
        self._space.publisher().perform(lambda tasks: tasks.end_parts(key, outcome))


def gather_in_store(
    config: WorkerConfig, space: DiskSpaceMaker, open_store: Callable[[], Store]
) -> GatherInStore:
    """The place where the parts of a worker's rank meet those of the others."""
    store = RetryingStore(LateStore(open_store))
    return GatherInStore(
        Path(config.root),
        config.rank,
        lambda: PartsInStore(store, config.prefix),
        LeadInStore(space) if config.leads else None,
    )
