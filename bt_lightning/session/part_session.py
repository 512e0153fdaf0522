"""The session of a rank that adds its parts to checkpoints, and leads nothing."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointError, SaveTimeoutError
from bt_lightning.localdir.held_images import release_held_images
from bt_lightning.session.parts_of_run import shortly
from bt_lightning.session.save_tracking import SaveListeners, Saves
from bt_lightning.session.visible_log import show_log
from bt_lightning.session.worker_config import worker_config
from bt_lightning.snapshot.saver import Saver
from bt_lightning.worker.worker_handle import Worker, unlimited
from bt_lightning.worker_messages import FreedSpace, FreeSpace, Published, WorkFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from bt_lightning.session.session_config import SessionConfig
    from bt_lightning.snapshot.save_record import SaveRecord, SnapshotOptions

log = logging.getLogger(__name__)

_ROOM_S = 60.0
"""Longest wait for the worker's look at the disk, before this process writes a part itself."""


class PartSession:
    """One on each rank but 0, for one fit of a sharded strategy; used on its training thread.

    What this rank cannot save is in the record of its part, and becomes an error on rank 0: this
    rank goes on, for one that ended alone would leave the others in a collective.
    """

    def __init__(self, config: SessionConfig, prefix: str) -> None:
        """`prefix` is that of the job in the store, as rank 0 found it."""
        show_log(config.log_level)
        self._root = config.root
        self._drain_s = config.drain_s
        self._streams = config.parts is not None and config.parts.meet == "store"
        self._worker = Worker(worker_config(config, prefix))
        self._worker.start()
        self.saves: Saves | None = None
        """The saves of this fit; None before it has started."""

    @property
    def worker_pid(self) -> int | None:
        """Process id of the worker, while there is one."""
        return self._worker.pid

    def snapshots(
        self,
        optimizers: Callable[[], Sequence[torch.optim.Optimizer]],
        options: SnapshotOptions,
        on_saved: Callable[[SaveRecord], None],
        *,
        pinned_for: torch.device | None,
    ) -> Saves:
        """As `WriterSession.snapshots`; rank 0 alone decides which saves are skipped."""
        release_held_images(self._root)  # the state is restored
        self._worker.begin(frozenset())
        always = replace(options, overlap="wait", arenas=options.count)
        saver = Saver(self._worker, optimizers, self.process_events, always, pinned_for=pinned_for)
        listeners = SaveListeners(_nothing, _nothing, on_saved, self._room)
        self.saves = Saves(saver, self._root, options.snapshot, listeners)
        return self.saves

    def _room(self, size: int, checkpoint_id: str) -> FreedSpace:
        """Whether the disk has room for a part that this process writes; rank 0 alone evicts."""
        room = self._worker.ask(FreeSpace(size, checkpoint_id), _ROOM_S)
        assert isinstance(room, FreedSpace)
        return room

    def process_events(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` seconds for events of the worker, and handle them."""
        if timeout_s:
            self._worker.await_event(timeout_s)
        for event in self._worker.poll():
            if isinstance(event, WorkFailed):
                log.warning("%s failed: %s", event.what, event.error)
            elif not isinstance(event, Published) and self.saves is not None:
                self.saves.saver.handle(event)

    def poll(self) -> None:
        """Handle events; takes microseconds if there are none.

        Raises:
            WorkerDiedError: the worker keeps dying.
        """
        saves = self.saves
        if not self._worker.has_events and (saves is None or not saves.has_outcomes):
            return
        self.process_events(0.0)
        if saves is not None:
            _collect(saves)

    def finish(
        self,
        left_s: Callable[[], float] = unlimited,
        others_left_s: Callable[[], float] | None = None,
    ) -> None:
        """Wait until this rank's parts are part of a checkpoint, or of none; end the worker.

        `left_s` returns the seconds left; an hour is a limit as well. `others_left_s` returns those
        left for the parts of other ranks, if less.
        """
        saves, lost = self.saves, False
        try:
            if saves is not None:
                self._wait(saves.saver, left_s, others_left_s or left_s)
                lost = saves.saver.pending() > 0
                _collect(saves)
        finally:
            self.saves = None
            durable = saves is None or not saves.saver.open.in_arena
            if saves is not None:
                saves.saver.close()
            if lost and durable and not self._streams:
                self._worker.kill()  # whoever has the others commits them
            else:
                self._worker.stop(hasty=lost)  # it goes on with what is nowhere else

    def _wait(
        self, saver: Saver, left_s: Callable[[], float], others_left_s: Callable[[], float]
    ) -> None:
        """Wait for outcomes, and longer for what this rank alone can make durable for all."""
        with contextlib.suppress(SaveTimeoutError):
            saver.drain(left_s=others_left_s)
            return
        until = time.monotonic() + self._drain_s
        with contextlib.suppress(SaveTimeoutError):
            wait = saver.drain if self._streams else saver.await_own_parts
            wait(left_s=lambda: min(left_s(), until - time.monotonic()))

    def abandon(self, left_s: Callable[[], float] = unlimited) -> None:
        """End the session of a failed run: its own parts are made durable where all can have them.

        Then they may still come together with those of other ranks, which may be dead.
        """
        try:
            self.finish(left_s, shortly(left_s))
        except CheckpointError as error:
            warnings.warn(f"while ending the run: {error}", stacklevel=2)

    def close(self) -> None:
        """End the worker at once, for a fit that did not begin."""
        saves, self.saves = self.saves, None
        if saves is not None:
            saves.saver.close()
        self._worker.kill()


def _collect(saves: Saves) -> None:
    try:
        saves.collect()
    except CheckpointError as error:  # rank 0 raises it, in the words of this rank's record
        log.warning("this rank's part of a save: %s", error)


def _nothing(*_: object) -> None:
    """Rank 0's to do."""
