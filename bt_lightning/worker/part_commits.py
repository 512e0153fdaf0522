"""What a worker has for saves that several ranks write: its parts, and their gathers."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bt_lightning.localdir.commit import write_hint
from bt_lightning.localdir.event_log import note
from bt_lightning.localdir.gather_directory import GatherDirectory
from bt_lightning.store.retry import LateStore, RetryingStore
from bt_lightning.store.transfer.store_parts import PartsInStore
from bt_lightning.worker.gather_parts import GatherThread
from bt_lightning.worker.lead_in_store import gather_in_store
from bt_lightning.worker.publish_report import note_published
from bt_lightning.worker.publish_shards import ShardHelper
from bt_lightning.worker.write_part import PartWriter
from bt_lightning.worker_messages import Published

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.manifest import Manifest
    from bt_lightning.sharding.gather_verdict import GatherVerdict
    from bt_lightning.store.interface import Store
    from bt_lightning.worker.free_disk_space import DiskSpaceMaker
    from bt_lightning.worker.gather_parts import DurablePart
    from bt_lightning.worker.gather_place import GatherPlace
    from bt_lightning.worker.removals_of_saves import RemovalsOfSaves
    from bt_lightning.worker_messages import CommitFailed, Committed, Withdrawn, WorkerConfig

_HELPED: Final = 64


class PartCommits:
    """The parts of one worker."""

    def __init__(
        self,
        config: WorkerConfig,
        space: DiskSpaceMaker,
        removals: RemovalsOfSaves,
        done: Callable[[Committed | CommitFailed | Withdrawn | Published | None], None],
        open_store: Callable[[], Store],
    ) -> None:
        """`done` as for `GatherThread`."""
        self._root = Path(config.root)
        self._removals = removals
        self._done = done
        self._helper: ShardHelper | None = None
        place: GatherPlace = GatherDirectory(self._root, config.rank)
        stored = None
        if config.gather == "store":
            place = stored = gather_in_store(config, space, open_store)
        elif config.store_url is not None and not config.leads:
            store = RetryingStore(LateStore(open_store))
            self._helper = ShardHelper(config.rank, lambda: PartsInStore(store, config.prefix))
        self.helped: dict[str, None] = {}
        """Digests of what was committed in a directory that all ranks share: each sends its own."""
        self._streams = place.streams
        self.gathers = GatherThread(place, config, done, self._ended)
        self.writer = PartWriter(self._root, space, place, self.gathers, removals)
        if stored is not None:
            self.writer.stream = stored.stream
            stored.drop_if(lambda key: removals.is_asked_for(self.gathers.number_of(key)))

    def _ended(self, own: DurablePart, verdict: GatherVerdict, here: bool) -> None:  # noqa: FBT001
        """Note the outcome of a save; `here`: this worker committed it."""
        manifest = verdict.manifest
        self._removals.ended(own.number, manifest.digest if manifest is not None else None)
        if manifest is None:
            return
        self.writer.moved(own.part.key, manifest.checkpoint_id)
        if not self._streams:
            self.helped[manifest.digest] = None
            while len(self.helped) > _HELPED:
                del self.helped[next(iter(self.helped))]
        if self._helper is not None:
            self._helper.committed(manifest, self._root / manifest.checkpoint_id)
        if here:
            self._note(own, manifest)

    def _note(self, own: DurablePart, manifest: Manifest) -> None:
        durable_s = time.time() - own.began
        with contextlib.suppress(OSError):  # a hint and an event, no checkpoint
            write_hint(self._root, manifest.checkpoint_id, manifest.step)
            note(
                self._root,
                "streamed" if self._streams else "durable",
                number=own.number,
                checkpoint=manifest.checkpoint_id,
                bytes=manifest.size,
                write_s=own.write_s,
                local_durable_s=durable_s,
                cpu_s=own.cpu_s,
            )
        if self._streams:
            event = Published(
                checkpoint_id=manifest.checkpoint_id,
                digest=manifest.digest,
                size=manifest.size,
                seconds=durable_s - own.write_s,
                remote_durable_s=durable_s,
            )
            note_published(self._root, event)
            self._done(event)
