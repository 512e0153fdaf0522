"""The session of one rank: what an adapter of a framework drives to save, resume and publish."""

from __future__ import annotations

import contextlib
import uuid
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from bt_lightning.errors import CheckpointError, InvalidSettingError
from bt_lightning.localdir.atomic_directory import temporary
from bt_lightning.restore.first_read import FirstRead
from bt_lightning.session.errors_between_ranks import is_save_failure, portable
from bt_lightning.session.fit_selection import close_fit, end_fit
from bt_lightning.session.load_start_point import load_start_point
from bt_lightning.session.part_session import PartSession
from bt_lightning.session.parts_of_run import PartsOfRun
from bt_lightning.session.publish_late import publish_late
from bt_lightning.session.removed_between_fits import ask_next_worker, find_to_remove
from bt_lightning.session.short_errors import shorten_errors
from bt_lightning.session.start_point import NO_OFFER, StartPoint
from bt_lightning.session.writer_session import WriterSession
from bt_lightning.worker.worker_handle import unlimited

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import torch

    from bt_lightning.manifest import Manifest
    from bt_lightning.restore.read_documents import MapLocation
    from bt_lightning.session.fit_selection import FitRequest, SelectedFit
    from bt_lightning.session.options import Options
    from bt_lightning.session.ranks import Ranks
    from bt_lightning.session.save_tracking import Saves
    from bt_lightning.session.session_config import SessionConfig
    from bt_lightning.session.snapshot_writer import SnapshotWriter
    from bt_lightning.session.start_point import OfferedCheckpoint
    from bt_lightning.sharding.save_part import SavePart
    from bt_lightning.snapshot.save_record import SaveRecord

T = TypeVar("T")
RankWriter: TypeAlias = WriterSession | PartSession
"""The session of a rank that writes."""


class RankSession:
    """The front that an adapter of a framework drives; every rank has one.

    `open`, `load`, `begin`; then `save`, `remove` and after each step `boundary`; then `finish`.

    Rank 0 alone has a `WriterSession` in it, from `open` until `take`; where ranks hold parts of
    tensors, each of the others has a `PartSession`. Without one, between fits, what is saved is
    committed by this process, and published before the call returns. All methods are the training
    thread's.

    Args:
        options: what the user asked for, merged with the environment.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._config: SessionConfig | None = None
        self.writer: WriterSession | None = None
        self.part: PartSession | None = None
        self._fit: SelectedFit | None = None
        self._ended: SelectedFit | None = None
        self._starting = contextlib.ExitStack()
        self.first_read = FirstRead()
        """An adapter whose load takes it says so in `keeps`."""
        self.parts: PartsOfRun | None = None
        """How the ranks write parts of tensors, if they do."""
        self.pinned: set[str] = set()
        """Digests of what this run resumed from: it never deletes them."""
        self._begun = self.failing = False
        """`failing`: the fit has failed, and its own failure is to speak."""
        shorten_errors(options.settings.log_level)

    def __getstate__(self) -> dict[str, Any]:
        """A copy in another process has no processes of its own."""
        return {**self.__dict__, "writer": None, "part": None, "_starting": contextlib.ExitStack()}

    def open(
        self,
        root: Path,
        ranks: Ranks,
        offered: OfferedCheckpoint = NO_OFFER,
        request: Callable[[], FitRequest] | None = None,
        *,
        sharded: bool = False,
    ) -> StartPoint:
        """Every rank: open the session on rank 0, and hear what it found to start from.

        Args:
            root: the checkpoint directory, absolute.
            ranks: the processes that train together.
            offered: what the framework, or its user, has to start from.
            request: makes what tells the fit from others, on rank 0; None: the job has one fit.
            sharded: whether each rank writes parts of tensors, so that each has a session.

        Raises:
            DirectoryUnusableError, StoreError: the directory or the store cannot be used.
            CheckpointNotFoundError: `resume="require"` and there is nothing to resume from.
            CheckpointCorruptError: the job has checkpoints, and none of them can be used.
            InvalidSettingError: another fit of this process has its name.
            RanksApartError: rank 0 did not come to an end.
        """
        stored = self._options.store is not None
        self.parts = PartsOfRun.of(ranks, root, stored=stored) if sharded else None
        self._begun = False
        self._starting.callback(self.first_read.clear)
        start = ranks.from_slow_zero(lambda: self._open(root, ranks, offered, request))
        if start.error is not None:
            raise start.error
        self._join(root, start)
        return start

    def share(self, root: Path, ranks: Ranks, start: StartPoint) -> None:
        """Every rank, after `open` and before `begin`: the state has turned out to be sharded.

        Raises:
            InvalidSettingError: the nodes have directories of their own, or `begin` was called.
        """
        if self.parts is None:
            if self._begun:
                msg = (
                    "the model was sharded behind load_latest, or behind the first save: shard it"
                    " before"
                )
                raise InvalidSettingError(msg)
            self.parts = PartsOfRun.of(ranks, root, stored=False)
            self._join(root, start)

    def _join(self, root: Path, start: StartPoint) -> None:
        """A rank but 0 adds parts to the checkpoints that rank 0 leads."""
        if self.parts is None:
            return
        self.parts.run = start.run
        if self.parts.rank:
            self._config = replace(self._options.session(root), parts=self.parts)
            self.part = PartSession(self._config, start.prefix)

    def _open(
        self,
        root: Path,
        ranks: Ranks,
        offered: OfferedCheckpoint,
        request: Callable[[], FitRequest] | None,
    ) -> StartPoint:
        """Rank 0; an error is a start point that every rank raises."""
        try:
            self._config = replace(self._options.session(root), parts=self.parts)
            self.writer = WriterSession(self._config, identified=request is not None)
            asked = None if request is None else request()
            start = self.writer.decide(offered, asked, ranks.world_size, self.first_read)
            self._config, self._fit = self.writer.config, start.fit
            apart = self.parts is not None and self.parts.meet == "store"  # nobody shares it
            mark = self._make_mark(root) if ranks.world_size > 1 and not apart else None
            return replace(start, by_user=offered.by_user, mark=mark, run=uuid.uuid4().hex)
        except Exception as error:  # noqa: BLE001 - every rank waits to hear of it
            self.close()
            return StartPoint(None, None, warm=False, error=portable(error))

    def _make_mark(self, root: Path) -> str | None:
        with contextlib.suppress(OSError):  # a full disk says so at the first save
            return str(self._starting.enter_context(temporary(root)))
        return None

    def load(
        self, start: StartPoint, root: Path, *, map_location: MapLocation = None
    ) -> dict[str, Any] | None:
        """Every rank: as `load_start_point`; what is loaded is not deleted by this run."""
        if start.path is not None and start.digest is not None:
            self.pinned.add(start.digest)
        return load_start_point(start, root, self._options, map_location, self.first_read)

    def begin(
        self,
        optimizers: Callable[[], Sequence[torch.optim.Optimizer]],
        on_saved: Callable[[SaveRecord], None] = lambda _: None,
        *,
        device: torch.device | None = None,
    ) -> Saves | None:
        """Every rank: the state is restored. From now on saves are snapshots.

        None on a rank that writes nothing.

        Args:
            optimizers: those whose parameters and state only their steps change.
            on_saved: is given the record of each save that ended, and again when it is published.
            device: the CUDA device that the state lies on, if it does.
        """
        self._begun = True
        self._starting.close()
        if self.part is not None:
            return self.part.snapshots(
                optimizers, self._options.snapshots, on_saved, pinned_for=device
            )
        if self.writer is None:
            return None
        self.writer.begin(frozenset(self.pinned))
        return self.writer.snapshots(
            optimizers, self._options.snapshots, on_saved, pinned_for=device
        )

    def boundary(self) -> None:
        """Every rank, after each step: a new batch may change what no optimizer owns.

        Raises:
            CheckpointError: as `WriterSession.poll`, unless `on_error` is `"warn"`.
        """
        if self.saves is not None:
            self.saves.saver.state_may_change()
        self.poll()

    def finish(self, left_s: Callable[[], float] = unlimited) -> None:
        """Every rank, when the fit is over: wait until what was saved is committed and published.

        Raises:
            DrainTimeoutError, DirectoryUnusableError, UploadFailedError: as `WriterSession.finish`.
        """
        session = self.take()
        if session is not None:
            self.report(lambda: session.finish(left_s))

    @property
    def fit_facts(self) -> dict[str, Any]:
        """What a checkpoint's manifest says of its fit; empty on ranks that do not write."""
        return self._fit.facts() if self._fit is not None else {}

    def end_fit(self, step: int | None) -> None:
        """Every rank: the fit has ended well at this optimizer step; None: it has failed."""
        fit, self._fit = self._fit, None
        if fit is not None and self._config is not None:
            end_fit(self._config.root, fit, step)
            self._ended = fit if step is not None else None

    def close_fit(self) -> None:
        """Every rank: a fit that ended well goes back to the script, with all published."""
        fit, self._ended = self._ended, None
        if fit is not None and self._config is not None:
            close_fit(self._config.root, fit)

    def take(self) -> RankWriter | None:
        """The session of this rank, which the caller ends; from here on there is none."""
        self._starting.close()
        session = self.writer or self.part
        self.writer = self.part = None
        return session

    def close(self) -> None:
        """End the session of a fit that never began; idempotent."""
        session = self.take()
        if session is not None:
            session.close()

    def poll(self) -> None:
        """Raise what the worker could not do; a few microseconds when it is well."""
        if self.writer is not None:
            self.report(self.writer.poll)
        elif self.part is not None:
            self.part.poll()

    def report(self, act: Callable[[], None], on_error: str | None = None) -> None:
        """Run `act`; raise its failure, or warn of an upload's, as the user chose."""
        try:
            act()
        except CheckpointError as error:
            if (on_error or self._options.on_error) == "raise" or is_save_failure(error):
                raise
            warnings.warn(str(error), stacklevel=2)

    @property
    def saves(self) -> Saves | None:
        """The snapshots of the fit that is running, on a rank that writes."""
        leading = self.writer or self.part
        return leading.saves if leading is not None else None

    def knows(self, checkpoint_id: str) -> bool:
        """Whether a checkpoint id is committed, maybe in the store only."""
        return self.writer is not None and checkpoint_id in self.writer.known

    def save(
        self,
        writer: SnapshotWriter[T],
        state: T,
        final: Path,
        root: Path,
        part: SavePart | None = None,
    ) -> None:
        """Save `state` as `final`, a path below `root`; on each rank that writes.

        During a fit a snapshot is taken, and the worker commits and publishes it; outside of one,
        it is committed and published when this returns.

        Args:
            writer: how a state becomes files.
            state: what that writer takes.
            final: the directory to be; its path below `root` is the checkpoint's id.
            root: the checkpoint directory, absolute.
            part: which part of a save `state` is (`PartsOfRun.next`); during a fit only.

        Raises:
            DirectoryUnusableError, UploadFailedError: as `WriterSession.poll`.
            CheckpointError: a part was given outside of a fit.
        """
        saves = self.saves
        if saves is not None:
            if self.writer is not None:
                self.writer.metrics.flush()  # a run that resumes from this save logs them no more
            saves.save(writer, state, final.relative_to(root).as_posix(), part=part)
            return
        if part is not None:
            msg = f"{final} is not saved: no session runs, in which the parts of ranks meet"
            raise CheckpointError(msg)
        manifest = writer.save(state, final, root)
        if self.writer is not None:
            self.writer.committed(manifest)
        elif self._config is not None:
            config, pinned = self._config, frozenset(self.pinned)
            on_error = "warn" if self.failing else None
            self.report(lambda: publish_late(config, pinned), on_error)

    def miss(self, part: SavePart, error: BaseException) -> None:
        """Let all ranks know that a save failed on this one before `save` had its part."""
        if self.saves is not None:  # no save has the number 0, so it frees nothing
            self.saves.saver.open.miss(0, part, f"{type(error).__name__}: {error}")

    def remove(self, final: Path, root: Path) -> None:
        """Ask for the removal of what is saved as `final`: it goes when a newer one is safe."""
        if self.part is not None:
            return  # rank 0 asks for all
        checkpoint_id = final.relative_to(root).as_posix()
        if self.saves is not None and self.saves.remove_when_committed(checkpoint_id):
            return  # it goes when it has come
        manifest, is_stored = find_to_remove(final, root)
        if manifest is not None:
            self._remove(manifest)
        elif is_stored and self.writer is not None:
            self.writer.remove_stored(checkpoint_id)

    def _remove(self, manifest: Manifest) -> None:
        if self.writer is not None:
            if (saves := self.writer.saves) is not None:
                saves.artifacts.hand_over(manifest.checkpoint_id)
            self.writer.remove(manifest)
        elif self._config is not None:
            ask_next_worker(self._config.root, manifest)
