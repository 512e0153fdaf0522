"""What a worker has for saves that several ranks write: its parts, and their gathers."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.localdir.commit import write_hint
from bt_lightning.localdir.event_log import note
from bt_lightning.localdir.gather_directory import GatherDirectory
from bt_lightning.worker.gather_parts import GatherThread
from bt_lightning.worker.write_part import PartWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.sharding.gather_verdict import GatherVerdict
    from bt_lightning.worker.free_disk_space import DiskSpaceMaker
    from bt_lightning.worker.gather_parts import DurablePart
    from bt_lightning.worker.removals_of_saves import RemovalsOfSaves
    from bt_lightning.worker_messages import CommitFailed, Committed, Withdrawn, WorkerConfig


class PartCommits:
    """The parts of one worker."""

    def __init__(
        self,
        config: WorkerConfig,
        space: DiskSpaceMaker,
        removals: RemovalsOfSaves,
        done: Callable[[Committed | CommitFailed | Withdrawn | None], None],
    ) -> None:
        """`done` as for `GatherThread`."""
        self._root = Path(config.root)
        self._removals = removals
        place = GatherDirectory(self._root, config.rank)
        self.gathers = GatherThread(place, config, done, self._ended)
        self.writer = PartWriter(self._root, space, place, self.gathers, removals)

    def _ended(self, own: DurablePart, verdict: GatherVerdict, here: bool) -> None:  # noqa: FBT001
        """Note the outcome of a save; `here`: this worker committed it."""
        manifest = verdict.manifest
        self._removals.ended(own.number, manifest.digest if manifest is not None else None)
        if manifest is None:
            return
        self.writer.moved(own.part.key, manifest.checkpoint_id)
        if here:
            with contextlib.suppress(OSError):  # a hint and an event, no checkpoint
                write_hint(self._root, manifest.checkpoint_id, manifest.step)
                note(
                    self._root,
                    "durable",
                    number=own.number,
                    checkpoint=manifest.checkpoint_id,
                    bytes=manifest.size,
                    write_s=own.write_s,
                    local_durable_s=time.time() - own.began,
                    cpu_s=own.cpu_s,
                )
