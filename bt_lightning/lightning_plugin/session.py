"""What the writing rank holds during one fit: its directory, its job, and its worker."""

from __future__ import annotations

import contextlib
import logging
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from bt_lightning.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointNotFoundError,
    DirectoryUnusableError,
    DrainTimeoutError,
    SaveTimeoutError,
    StoreTransientError,
    UploadFailedError,
)
from bt_lightning.lightning_plugin.resume import Decision
from bt_lightning.lightning_plugin.rhythm import Rhythm
from bt_lightning.lightning_plugin.saves import Saves, Told
from bt_lightning.localdir.commit import write_hint
from bt_lightning.localdir.committed import list_committed
from bt_lightning.localdir.durable import sweep
from bt_lightning.localdir.requests import request_removal
from bt_lightning.localdir.usable import usable_root
from bt_lightning.manifest import Manifest
from bt_lightning.messages import (
    CheckStore,
    Fetch,
    ListStore,
    Published,
    StoredCheckpoint,
    WorkerConfig,
    WorkFailed,
)
from bt_lightning.restore.find import Found, Stored, find_loaded, find_own
from bt_lightning.snapshot.saver import Saver
from bt_lightning.store.port import redact
from bt_lightning.worker.commit_lock import wait_for_commits
from bt_lightning.worker.handle import Worker, ever

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import torch

    from bt_lightning.settings import Job
    from bt_lightning.snapshot.record import SaveRecord, SnapshotOptions

log = logging.getLogger(__name__)

Resume = Literal["auto", "require", "never", "weights"]
_ASK_S = 60.0
_EXIT_S = 10.0
"""What a worker may take to end."""
_FETCH_S = 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class SessionConfig:
    """What a session is opened with; every path absolute, every default filled in."""

    root: Path
    load_dir: Path | None
    store_url: str | None = field(repr=False)
    storage_options: dict[str, object] = field(default_factory=dict, repr=False)
    job: Job
    resume: Resume
    weights_only: bool | None
    drain_s: float


class Session:
    """One fit on the rank that writes. Every other rank has none."""

    def __init__(self, config: SessionConfig) -> None:
        self._config = config
        usable_root(config.root)
        if not wait_for_commits(config.root, config.drain_s):
            msg = (
                f"another run still commits to {config.root} after {config.drain_s:.0f} s: end it,"
                " or give this one another BT_CHECKPOINT_DIR"
            )
            raise DirectoryUnusableError(msg)
        for path in sweep(config.root):
            log.warning("put back %s, which a killed process was about to replace", path)
        self._worker = _worker(config)
        self.saves: Saves | None = None
        """The snapshots of this fit, once it has started."""
        self.rhythm = Rhythm()
        """What steps and saves of this fit take."""
        self._newest: SaveRecord | None = None
        self._failures: list[str] = []
        self._published: list[Published] = []
        self._listed: list[Stored] = []

    @property
    def worker_pid(self) -> int | None:
        """Process id of the worker, while there is one."""
        return self._worker.pid

    @property
    def newest(self) -> SaveRecord | None:
        """The newest save of this fit that is committed and can be resumed from."""
        return self.saves.newest if self.saves is not None else self._newest

    def decide(self) -> Decision:
        """Check the store, then choose what to start from.

        Raises:
            StoreError: the store cannot be used, or not be reached while nothing is on disk.
            CheckpointNotFoundError: `resume="require"` and there is nothing to resume from.
        """
        config, found = self._config, Found()
        self._listed = self._stored()
        if config.resume == "never":
            return Decision(None, None, warm=False)
        own = find_own(config.root, self._listed, self._fetch, found)
        if not own and config.load_dir is not None:
            find_loaded(
                config.load_dir,
                config.job.node_rank,
                found,
                weights_only=config.weights_only,
                warm=config.resume == "weights",
            )
        if found.path is None and config.resume == "require":
            store = redact(config.store_url) if config.store_url else None
            places = ", ".join(str(p) for p in (config.root, store, config.load_dir) if p)
            msg = (
                f"resume='require', and no usable checkpoint in {places}. Considered:\n"
                f"{found.describe()}"
            )
            raise CheckpointNotFoundError(msg)
        if found.path is None and found.damaged:
            msg = (
                "none of this job's checkpoints can be used, and starting afresh could hide that."
                f" Considered:\n{found.describe()}\nRepair one, or start with resume='never'"
            )
            raise CheckpointCorruptError(msg)
        if len(found.considered) > 1 or (found.considered and found.path is None):
            log.warning("looked for a checkpoint to resume from:\n%s", found.describe())
        warm = config.resume == "weights" and not found.own
        return Decision(found.path, found.digest, warm=warm)

    def begin(self, pinned: frozenset[str]) -> None:
        """Let the worker publish and delete; what the run resumed from is never deleted."""
        self._worker.begin(pinned)

    def snapshots(
        self,
        optimizers: Callable[[], Sequence[torch.optim.Optimizer]],
        options: SnapshotOptions,
        on_saved: Callable[[SaveRecord], None],
        *,
        pinned_for: torch.device | None,
    ) -> Saves:
        """From now on saves are snapshots that the worker commits."""
        saver = Saver(self._worker, optimizers, self.pump, options, pinned_for=pinned_for)

        def ended(record: SaveRecord) -> None:
            self.rhythm.saved(record)
            on_saved(record)

        told = Told(self.committed, self.remove, ended)
        self.saves = Saves(saver, self._config.root, options.snapshot, told)
        return self.saves

    def committed(self, manifest: Manifest) -> None:
        """This process has put a checkpoint on the disk: tell the worker."""
        try:
            write_hint(self._config.root, manifest.checkpoint_id, manifest.step)
        except OSError as error:
            log.warning("the hint latest.json could not be written: %s", error)
        self._worker.wake()

    def remove(self, manifest: Manifest) -> None:
        """A checkpoint is to go, when something newer is safe: tell the worker."""
        request_removal(self._config.root, manifest.digest)
        self._worker.wake()

    def remove_stored(self, checkpoint_id: str) -> None:
        """A checkpoint that this disk does not hold is to go: after a lost disk, from the store."""
        for stored in self._listed:
            if stored.manifest.checkpoint_id == checkpoint_id:
                self.remove(stored.manifest)

    def pump(self, timeout_s: float) -> None:
        """Wait for events of the worker, at most so long, and take them."""
        if timeout_s:
            self._worker.await_event(timeout_s)
        for event in self._worker.poll():
            if isinstance(event, WorkFailed):
                self._failures.append(f"{event.what} failed: {event.error}")
            elif isinstance(event, Published):
                log.debug("published %s: bytes=%d", event.checkpoint_id, event.size)
                self._published.append(event)
            elif self.saves is not None:
                self.saves.saver.handle(event)

    def poll(self) -> None:
        """Raise what could not be done since the last call, once.

        Raises:
            DirectoryUnusableError: the disk refused a save.
            TornSnapshotError: the state changed while it was copied.
            UploadFailedError: the store refused for good.
            WorkerDiedError: the worker keeps dying.
        """
        told = self._failures or self._published or self._worker.stirred
        if not told and (self.saves is None or not self.saves.saver.stirred):
            return  # as at nearly every step
        self.pump(0.0)
        published, self._published = self._published, []
        if self.saves is not None:
            self.saves.collect()
            self.saves.published(published)
        failures, self._failures = self._failures, []
        if failures:
            msg = (
                f"{'; '.join(failures)}. Checkpoints stay on disk in {self._config.root} and are"
                " sent when the store takes them"
            )
            raise UploadFailedError(msg)

    def finish(self, left_s: Callable[[], float] = ever) -> None:
        """Wait until every save is committed, and all that is committed published; end the worker.

        `left_s` says how long that may take from now on, beside an hour and the drain timeout.

        Raises:
            DrainTimeoutError: some of it is not.
            DirectoryUnusableError, TornSnapshotError, UploadFailedError: as `poll`.
        """
        errors = []
        try:
            for act in (self._end_saving, self._end_publishing, lambda _: self.poll()):
                try:
                    act(left_s)
                except CheckpointError as error:
                    errors.append(error)
        finally:
            self._close_saves()
            self._worker.stop(hasty=left_s() < _EXIT_S)
        for other in errors[1:]:
            log.error("%s", other)
        if errors:
            raise errors[0]

    def settle_saves(self, left_s: Callable[[], float]) -> None:
        """Wait for the saves under way, as long as `left_s` says; `poll` tells of them."""
        if self.saves is not None:
            with contextlib.suppress(SaveTimeoutError):
                self.saves.saver.drain(left_s=left_s)

    def _end_saving(self, left_s: Callable[[], float]) -> None:
        if self.saves is not None:
            self.saves.saver.drain(left_s=left_s)
            self.saves.collect()

    def _end_publishing(self, left_s: Callable[[], float]) -> None:
        self._worker.drain(self._config.drain_s, left_s)

    def abandon(self, left_s: Callable[[], float] = ever) -> None:
        """End the session of a run that failed: publish what is there; its failure speaks."""
        try:
            self.finish(left_s)
        except (CheckpointError, DrainTimeoutError) as error:
            warnings.warn(f"while ending the run: {error}", stacklevel=2)

    def close(self) -> None:
        """End the worker at once, for a run that never began."""
        self._close_saves()
        self._worker.kill()

    def _close_saves(self) -> None:
        self._newest = self.newest
        saves, self.saves = self.saves, None
        if saves is not None:
            saves.saver.close()

    def _stored(self) -> list[Stored]:
        if self._config.store_url is None:
            return []
        try:
            self._worker.ask(CheckStore(), _ASK_S)
            answer = self._worker.ask(ListStore(), _ASK_S)
        except StoreTransientError as error:
            fresh = self._config.resume == "never"
            if not fresh and not list_committed(self._config.root)[0]:
                raise  # the store may hold this job's checkpoints: starting afresh would lose them
            warnings.warn(f"the store does not answer, going on from disk: {error}", stacklevel=2)
            return []
        stored = []
        for item in answer if isinstance(answer, list) else ():
            try:
                stored.append(_stored(item))
            except CheckpointError as error:
                log.warning("left out a checkpoint of the store: %s", error)
        return stored

    def _fetch(self, stored: Stored) -> str:
        """Bring a checkpoint of the store to the disk; its own name, unless damage has that."""
        target = stored.manifest.checkpoint_id
        if (self._config.root / target).exists():
            target = f"{target}-{stored.manifest.digest[:8]}"
        return str(self._worker.ask(Fetch(stored.folder, target), _FETCH_S))


def publish_late(config: SessionConfig, pinned: frozenset[str]) -> None:
    """Publish what was committed when no fit is running, as by `trainer.save_checkpoint` after one.

    Raises:
        DrainTimeoutError, UploadFailedError: it is on disk, and the next start sends it.
    """
    if config.store_url is None:
        return
    worker = _worker(config)
    try:
        worker.begin(pinned)
        worker.drain(config.drain_s)
    finally:
        worker.stop()


def _worker(config: SessionConfig) -> Worker:
    worker = Worker(
        WorkerConfig(
            root=str(config.root),
            store_url=config.store_url,
            storage_options=dict(config.storage_options),
            prefix=config.job.prefix,
            drain_s=config.drain_s,
        )
    )
    worker.start()
    return worker


def _stored(item: StoredCheckpoint) -> Stored:
    return Stored(item.folder, Manifest.from_bytes(item.manifest, f"store {item.folder}"))
