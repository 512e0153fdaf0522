"""The session of the rank that writes during one fit: its directory, its job, and its worker."""

from __future__ import annotations

import contextlib
import logging
import warnings
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from bt_lightning.errors import (
    CheckpointError,
    DrainTimeoutError,
    SaveTimeoutError,
    UploadFailedError,
)
from bt_lightning.localdir.commit import write_hint
from bt_lightning.localdir.disk_errors import directory_errors
from bt_lightning.localdir.held_images import release_held_images
from bt_lightning.localdir.job_id_file import note_job
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.localdir.removal_requests import request_local_removal
from bt_lightning.manifest import Manifest
from bt_lightning.removal_requester import Requester
from bt_lightning.session.directory_takeover import take_over
from bt_lightning.session.job_search import find_lost_job, with_own_job
from bt_lightning.session.known_checkpoints import KnownCheckpoints
from bt_lightning.session.metrics_log import MetricsLog
from bt_lightning.session.parts_of_run import shortly
from bt_lightning.session.publish_late import runner_publishes, started_worker
from bt_lightning.session.run_lines import end_line
from bt_lightning.session.save_tracking import SaveListeners, Saves
from bt_lightning.session.start_point import (
    FETCH_S,
    NO_OFFER,
    StartPointSearch,
    listed_in_store,
    stored_checkpoint,
)
from bt_lightning.session.step_timings import StepTimings
from bt_lightning.session.store_wait import told_of_wait
from bt_lightning.session.straight_reads import StraightReads
from bt_lightning.session.visible_log import show_log, tell_start
from bt_lightning.snapshot.saver import Saver
from bt_lightning.worker.worker_handle import unlimited
from bt_lightning.worker_messages import (
    Committed,
    Fetch,
    FreedSpace,
    FreeSpace,
    LogMetrics,
    Published,
    WorkFailed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import torch

    from bt_lightning.restore.first_read import FirstRead
    from bt_lightning.session.fit_selection import FitRequest
    from bt_lightning.session.session_config import SessionConfig
    from bt_lightning.session.start_point import OfferedCheckpoint, StartPoint
    from bt_lightning.snapshot.save_record import SaveRecord, SnapshotOptions

log = logging.getLogger(__name__)

_EXIT_S = 10.0
"""Seconds that a worker may need to end."""
_ROOM_S = 3600.0


class WriterSession:
    """The session of one fit, on the rank that writes only; used on its training thread."""

    def __init__(self, config: SessionConfig, *, identified: bool = False) -> None:
        """`identified`: `decide` will be told what is trained, so a lost job can be found by it."""
        show_log(config.log_level)
        parts = config.parts
        apart = parts is not None and parts.meet == "store"
        stored = config.store_url is not None
        take_over(config.root, config.drain_s, stored=stored, gathers=not apart)
        self.config = with_own_job(config) if identified else config
        """With the job that the session writes to: `decide` may change it."""
        self._worker = started_worker(self.config)
        self.saves: Saves | None = None
        """The saves of this fit; None before it has started."""
        self.timings = StepTimings()
        """How long steps and saves of this fit take."""
        self._newest: SaveRecord | None = None
        self._failures: list[str] = []
        self._published: list[Published] = []
        self._unwritten_requests: list[str] = []
        """Digests of checkpoints whose removal request could not be written to the disk yet."""
        self.known = KnownCheckpoints()
        self.metrics = MetricsLog(lambda lines: self._worker.send_if_room(LogMetrics(lines)))
        """Rows of metrics for the log; of whoever sees what is logged."""
        self._saved = 0
        """Checkpoints that this session has committed."""

    @property
    def worker_pid(self) -> int | None:
        """Process id of the worker, while there is one."""
        return self._worker.pid

    @property
    def newest(self) -> SaveRecord | None:
        """The newest committed save of this fit that can be resumed from."""
        return self.saves.newest if self.saves is not None else self._newest

    def decide(
        self,
        offered: OfferedCheckpoint,
        request: FitRequest | None,
        world_size: int,
        first_read: FirstRead,
    ) -> StartPoint:
        """Check the store, choose the start point as `StartPointSearch.decide`, and say so."""
        with directory_errors(self.config.root):
            self._own_job(request)
            straight = StraightReads(self.config, first_read, world_size)
            verifies = not offered.by_user  # else something else is loaded
            search = StartPointSearch(self.config, self._worker, straight, verifies=verifies)
            start = search.decide(NO_OFFER if offered.by_user else offered, request)
        found = None if offered.by_user else search.chosen
        tell_start(self.config, start, found, world_size, by_user=offered.by_user)
        for stored in search.listed:
            self.known.add(stored.manifest)
        return replace(start, prefix=self.config.job.prefix)

    def _own_job(self, request: FitRequest | None) -> None:
        """Find the job that a new directory has lost, if any; record which one it belongs to."""
        if request is not None:
            lost = find_lost_job(self.config, request.identity, self._worker.ask)
            if lost is not None:
                self._worker.kill()
                self.config = replace(self.config, job=lost, job_is_new=False)
                self._worker = started_worker(self.config)
        note_job(self.config.root, self.config.job.prefix, durable=True)

    def begin(self, pinned: frozenset[str]) -> None:
        """Let the worker publish and delete; `pinned` (what the run resumed from) is kept."""
        release_held_images(self.config.root)  # the state is restored
        self._worker.begin(pinned)

    def snapshots(
        self,
        optimizers: Callable[[], Sequence[torch.optim.Optimizer]],
        options: SnapshotOptions,
        on_saved: Callable[[SaveRecord], None],
        *,
        pinned_for: torch.device | None,
    ) -> Saves:
        """Start saving by snapshots that the worker commits; `on_saved` gets each ended save."""
        saver = Saver(self._worker, optimizers, self.process_events, options, pinned_for=pinned_for)
        saver.generation = self.known.generation

        def ended(record: SaveRecord) -> None:
            self.timings.save_ended(record)
            on_saved(record)

        listeners = SaveListeners(self.committed, self.remove, ended, self._room)
        self.saves = Saves(saver, self.config.root, options.snapshot, listeners)
        return self.saves

    def bring(self, checkpoint_id: str) -> None:
        """Fetch a checkpoint that is in the store only to its place on the disk; may take long.

        Raises:
            StoreError, DirectoryFullError: the store does not answer, or the disk has no room.
            CheckpointCorruptError: it is damaged.
        """
        if self.config.store_url is None:
            return
        listed = [stored_checkpoint(one) for one in listed_in_store(self._worker)]
        found = [one for one in listed if one.manifest.checkpoint_id == checkpoint_id]
        if found:
            newest = max(found, key=lambda one: one.manifest.order)
            self._worker.ask(Fetch(newest.folder, checkpoint_id), FETCH_S)

    def committed(self, manifest: Manifest) -> None:
        """Note that this process has committed a checkpoint, and wake the worker."""
        self.known.add(manifest)
        self._saved += 1
        try:
            write_hint(self.config.root, manifest.checkpoint_id, manifest.step)
        except OSError as error:
            log.warning("the hint latest.json could not be written: %s", error)
        self._worker.wake()

    def remove(self, manifest: Manifest) -> None:
        """Request the removal of a checkpoint, once a newer one is committed."""
        self.known.drop(manifest)
        self._request([manifest.digest])

    def remove_stored(self, checkpoint_id: str) -> None:
        """Request the removal of a checkpoint that is in the store only."""
        self._request(self.known.forget(checkpoint_id))

    def _request(self, digests: Iterable[str]) -> None:
        """Write removal requests; those that the disk refuses are written again later."""
        self._unwritten_requests += digests
        requests, self._unwritten_requests = self._unwritten_requests, []
        for digest in requests:
            try:
                request_local_removal(self.config.root, digest, Requester.TRAINING)
            except OSError:
                self._unwritten_requests.append(digest)
        self._worker.wake()

    def _room(self, size: int, checkpoint_id: str) -> FreedSpace:
        """Let the worker free space for a direct write of this process; waits for it."""
        room = self._worker.ask(FreeSpace(size, checkpoint_id), _ROOM_S)
        assert isinstance(room, FreedSpace)
        return room

    def process_events(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` seconds for events of the worker, and handle them."""
        if timeout_s:
            self._worker.await_event(timeout_s)
        for event in self._worker.poll():
            if isinstance(event, WorkFailed) and event.of_a_file:
                log.warning("%s", event.error)  # no reason to end training
            elif isinstance(event, WorkFailed):
                self._failures.append(f"{event.what} failed: {event.error}")
            elif isinstance(event, Published):
                log.debug("published %s: bytes=%d", event.checkpoint_id, event.size)
                self._published.append(event)
            elif self.saves is not None:
                if isinstance(event, Committed):  # before its removal can be requested
                    self.known.add(Manifest.from_bytes(event.manifest, "a save"))
                    self._saved += 1
                self.saves.saver.handle(event)

    def poll(self) -> None:
        """Handle events and raise each failure since the last call once.

        Raises:
            DirectoryUnusableError: a save could not be written to the disk.
            TornSnapshotError: the state changed while it was copied.
            UploadFailedError: the store refused a checkpoint for good.
            WorkerDiedError: the worker keeps dying.
        """
        self.metrics.pass_on()
        has_news = self._failures or self._published or self._worker.has_events
        if not has_news and (self.saves is None or not self.saves.has_outcomes):
            return  # as at nearly every step
        if self._unwritten_requests:
            self._request([])
        self.process_events(0.0)
        published, self._published = self._published, []
        if self.saves is not None:
            self.saves.collect()
            self.saves.published(published)
        failures, self._failures = self._failures, []
        if failures:
            msg = (
                f"{'; '.join(failures)}. Checkpoints stay on disk in {self.config.root} and are"
                " sent when the store takes them"
            )
            raise UploadFailedError(msg)

    def finish(
        self,
        left_s: Callable[[], float] = unlimited,
        saves_left_s: Callable[[], float] | None = None,
    ) -> None:
        """Wait until every save is committed and every checkpoint published; end the worker.

        `left_s` returns the seconds left; an hour and the drain timeout are limits as well.
        `saves_left_s` returns those left for the saves, if less, of a run whose other ranks may be
        dead.

        Raises:
            DrainTimeoutError: something was not published in time.
            DirectoryUnusableError, TornSnapshotError, UploadFailedError: as `poll`.
        """
        errors = []
        self.metrics.flush()
        self._worker.awaits_parts = saves_left_s is None
        try:
            saves = partial(self._end_saving, saves_left_s or left_s)
            for act in (saves, partial(self._end_publishing, left_s), self.poll):
                try:
                    act()
                except CheckpointError as error:
                    errors.append(error)
        finally:
            if self._unwritten_requests:
                log.warning(
                    "the disk refuses: %d checkpoints that may go stay",
                    len(self._unwritten_requests),
                )
            self._close_saves()
            self._worker.stop(hasty=left_s() < _EXIT_S)
        for other in errors[1:]:
            log.error("%s", other)
        if errors:
            raise errors[0]
        kept, waits = self._kept(), runner_publishes(self.config)
        log.info("%s", end_line(self.config, saved=self._saved, kept=kept, waits=waits))

    def _kept(self) -> int:
        """Number of checkpoints that are left; without a store `known` lacks those from before."""
        if self.config.store_url is None:
            with contextlib.suppress(OSError):  # all is saved by now: a line says so in any case
                return len(list_committed(self.config.root, foreign=False).found)
        return len(self.known.newest)

    def wait_for_saves(self, left_s: Callable[[], float]) -> None:
        """Wait for the saves in progress for up to `left_s()` seconds; `poll` collects them."""
        if self.saves is not None:
            with contextlib.suppress(SaveTimeoutError):
                self.saves.saver.drain(left_s=left_s)

    def _end_saving(self, left_s: Callable[[], float]) -> None:
        if self.saves is not None:
            self.saves.saver.drain(left_s=left_s)
            self.saves.collect()

    def _end_publishing(self, left_s: Callable[[], float]) -> None:
        if runner_publishes(self.config):
            return
        with told_of_wait(self.config):
            self._worker.drain(self.config.drain_s, left_s)

    def abandon(self, left_s: Callable[[], float] = unlimited) -> None:
        """End the session of a failed run: publish the checkpoints; turn errors into warnings."""
        try:
            self.finish(left_s, saves_left_s=shortly(left_s) if self.config.parts else None)
        except (CheckpointError, DrainTimeoutError) as error:
            warnings.warn(f"while ending the run: {error}", stacklevel=2)

    def close(self) -> None:
        """End the worker at once, for a fit that did not begin."""
        self._close_saves()
        self._worker.kill()

    def _close_saves(self) -> None:
        self._newest = self.newest
        saves, self.saves = self.saves, None
        if saves is not None:
            saves.saver.close()
