"""The start point of a run: rank 0 lists disk and store, and chooses the newest whole one."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bt_lightning.checkpoint_formats.sharded_folders import DEEPSPEED
from bt_lightning.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    DirectoryFullError,
    InvalidSettingError,
    StoreTransientError,
)
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, verify_sizes
from bt_lightning.localdir.newest_in_store import newest_in_store
from bt_lightning.manifest import Manifest
from bt_lightning.restore.find_checkpoint import Search, Stored, find_loaded, find_own, step_of
from bt_lightning.restore.read_documents import load_file
from bt_lightning.session.checkpoint_paths import is_committed, local_path
from bt_lightning.session.fit_selection import FitRequest, JobRecords, SelectedFit, select_fit
from bt_lightning.store.interface import redact
from bt_lightning.worker_messages import (
    CheckStore,
    Fetch,
    ListStore,
    ReadFits,
    StoredCheckpoint,
    Verify,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.localdir.list_and_verify_checkpoints import Listed
    from bt_lightning.session.session_config import SessionConfig
    from bt_lightning.session.straight_reads import StraightReads
    from bt_lightning.worker.worker_handle import Worker

log = logging.getLogger(__name__)

_ASK_S = 60.0
FETCH_S = 24 * 3600.0
"""Longest wait for a fetch."""
_OF_LIGHTNING = (None, DEEPSPEED)
"""The layouts of one framework: what one strategy saved, another may be told to resume from."""


@dataclass(frozen=True, slots=True)
class StartPoint:
    """What a run starts from, the same on every rank."""

    path: str | None
    digest: str | None
    warm: bool
    """Take the weights only: a new run begins at step 0."""
    folder: str | None = None
    """Where it is read from in the store, if the disk has no room for it."""
    prefix: str = ""
    """Key prefix of the job in the store."""
    by_user: bool = True
    """Whether the user named the path that a fit starts from, in its `ckpt_path`: that is taken."""
    mark: str | None = None
    """What rank 0 made in the checkpoint directory, for the others to see."""
    fit: SelectedFit | None = None
    """Which of the job's fits this one is; None where the framework does not say."""
    complete: bool = False
    """Whether the fit has ended with this very state, and is to train no longer."""
    run: str = ""
    """Of the saves of several ranks (`SaveKey.run`); rank 0 draws it."""
    error: Exception | None = None
    """Why there is none: raised on every rank."""

    @property
    def goes_on(self) -> bool:
        """Whether the fit began before, be it that nothing was saved, or has a start elsewhere."""
        return self.path is not None or (self.fit is not None and self.fit.was is not None)

    @property
    def fit_folder(self) -> str:
        """Folder of the fit's checkpoints below the root; empty for the root itself."""
        return self.fit.record.folder if self.fit is not None else ""


@dataclass(frozen=True)
class OfferedCheckpoint:
    """What the framework, or its user, has for a fit to start from."""

    path: str | None = None
    """A checkpoint that the framework found by itself: of SLURM's requeue, say."""
    by_user: bool = False
    """Whether the user named what this fit starts from: that is taken."""
    load: Callable[..., dict[str, Any]] = load_file
    """How `path` is read; takes `weights_only`."""
    format: str | None = None
    """The layout of what the framework resumes from (`hf-trainer`); None: our own."""


NO_OFFER = OfferedCheckpoint()


class StartPointSearch:
    """Made once, on rank 0, before a fit begins."""

    def __init__(
        self,
        config: SessionConfig,
        worker: Worker,
        straight: StraightReads,
        *,
        verifies: bool = True,
    ) -> None:
        """`verifies`: else only sizes count, as something else is loaded."""
        self._config, self._worker = config, worker
        self._reads = straight
        self._verifies = verifies
        self.listed: list[Stored] = []
        """What the store held of this job."""
        self._format: str | None = None
        self._of_other_layouts: list[Manifest] = []
        """What the disk has of the job in other layouts of this framework."""
        self._reached = False
        """Whether the store has answered."""
        self._unusable: list[str] = []
        """What the store has of this job that cannot be used, a line each."""
        self.chosen: Search | None = None
        """What was found to start from, if anything was searched for."""
        self._straight: dict[str, str] = {}
        """Path -> folder of the store, of what is not brought to the disk."""

    def decide(
        self, offered: OfferedCheckpoint = NO_OFFER, request: FitRequest | None = None
    ) -> StartPoint:
        """Check the store, then choose what to start from: the newest whole one of all wins.

        With a `request`, only checkpoints of that fit count.

        Raises:
            StoreError: the store cannot be used, or not be reached while nothing is on disk.
            CheckpointNotFoundError: `resume="require"` and there is nothing to resume from.
            InvalidSettingError: another fit of this process has its name, or the newest
                checkpoint is one that only another strategy reads.
        """
        self._format = offered.format
        self.listed = self._stored()
        local = self._local()
        fit = self._select(request, local)
        if self._config.resume == "never":
            return StartPoint(offered.path, None, warm=False, fit=fit)
        if fit is not None and (fit.stands or (fit.is_another and fit.was is None)):
            if self._config.resume == "require" and not fit.follows:
                msg = (
                    f"resume='require', and {self._config.root} has checkpoints of other fits only"
                )
                raise CheckpointNotFoundError(msg)
            return StartPoint(None, None, warm=False, fit=fit)  # only a first one looks elsewhere
        start, step = self._search(offered, local, fit)
        complete = fit is not None and start.path is not None and fit.is_complete(step)
        return replace(start, fit=fit, complete=complete)

    def _local(self) -> Listed:
        """What this package wrote on the disk, in the layout that is resumed from."""
        listed = list_committed(self._config.root, foreign=False)
        self._of_other_layouts = [
            one.manifest for one in listed.found if self._is_other(one.manifest)
        ]
        return listed.of_format(self._format)

    def _is_other(self, manifest: Manifest) -> bool:
        """Whether it is in a layout of this framework that this run does not read."""
        is_lightnings = self._format in _OF_LIGHTNING and manifest.format in _OF_LIGHTNING
        return is_lightnings and manifest.format != self._format

    def _refuse_other_layouts(self, owns: Callable[[Manifest], bool], found: Search) -> None:
        """Refuse to go on without a newer checkpoint of this fit that is in another layout."""
        each = self._of_other_layouts
        each += [one.manifest for one in self.listed if self._is_other(one.manifest)]
        newest = max((one for one in each if owns(one)), key=lambda one: one.order, default=None)
        if newest is None or (found.own and found.step is not None and found.step >= newest.step):
            return
        other = "DeepSpeed's engine" if newest.format == DEEPSPEED else "another strategy"
        msg = (
            f"the newest checkpoint of this run, {newest.checkpoint_id} of step {newest.step}, was"
            f" saved by {other}, and this strategy cannot read it: resume with the strategy that"
            " saved it, or take resume='never' or another checkpoint directory (BT_CHECKPOINT_DIR)"
        )
        raise InvalidSettingError(msg)

    def _listed_of_format(self) -> list[Stored]:
        return [one for one in self.listed if one.manifest.format == self._format]

    def _select(self, request: FitRequest | None, local: Listed) -> SelectedFit | None:
        if request is None:
            return None
        config = self._config
        ledger = self._worker.ask(ReadFits(), _ASK_S) if self._reached else None
        job = JobRecords(
            local=[one.manifest for one in local.found],
            stored=[one.manifest for one in self._listed_of_format()],
            stored_ledger=ledger if isinstance(ledger, bytes) else None,
        )
        return select_fit(config.root, request, job)

    def _search(
        self, offered: OfferedCheckpoint, local: Listed, fit: SelectedFit | None
    ) -> tuple[StartPoint, int | None]:
        """The start point, and its optimizer step."""
        verify = self._reads.first_read.verify if self._verifies else verify_sizes
        config, found = self._config, Search(self._format, verify)
        found.considered += self._unusable
        found.damaged = bool(self._unusable)
        others = self._others(offered, found)
        owns = fit.owns if fit is not None else _is_any
        local = local._replace(found=[one for one in local.found if owns(one.manifest)])
        stored = [one for one in self._listed_of_format() if owns(one.manifest)]
        own = find_own(local, stored, self._fetch, found, others)
        self._refuse_other_layouts(owns, found)
        if not own and not found.damaged and config.load_dir is not None:
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
        found.check()
        if len(found.considered) > 1 or (found.considered and found.path is None):
            log.warning("looked for a checkpoint to resume from:\n%s", found.describe())
        self.chosen = found
        warm = config.resume == "weights" and not found.own
        folder = self._straight.get(found.path or "")
        return StartPoint(found.path, found.digest, warm=warm, folder=folder), found.step

    def _others(self, offered: OfferedCheckpoint, found: Search) -> list[tuple[int, str]]:
        """Step and path of what the framework found, if it can be resumed from and is not ours."""
        path, config = offered.path, self._config
        if path is None:
            return []
        if is_committed(path) and local_path(path).resolve().is_relative_to(config.root):
            return []  # it is found there, and verified
        try:
            checkpoint = offered.load(path, weights_only=config.weights_only)
            return [(step_of(checkpoint, path), path)]
        except Exception as error:  # noqa: BLE001 - torch.load raises anything
            reason = str(error).partition("\n")[0]
            found.considered.append(f"{path}: refused, {type(error).__name__}: {reason}")
            found.damaged = True
            return []

    def _stored(self) -> list[Stored]:
        if self._config.store_url is None:
            return []
        try:
            self._worker.ask(CheckStore(), _ASK_S)
            answer = listed_in_store(self._worker)
            self._reached = True
        except StoreTransientError as error:
            if self._config.resume != "never":
                self._refuse_older(error)
            warnings.warn(f"the store does not answer, going on from disk: {error}", stacklevel=2)
            return []
        stored = []
        for item in answer:
            try:
                stored.append(stored_checkpoint(item))
            except CheckpointError as error:
                self._unusable.append(f"store {item.folder}: refused, {error}")
        return stored

    def _refuse_older(self, error: StoreTransientError) -> None:
        """Without the store, go on from the disk only if nothing newer is in the store alone."""
        local, away = self._local().found, newest_in_store(self._config.root)
        if not local:
            raise error  # it may hold this job's checkpoints: starting afresh would lose them
        if away is not None and away.order > local[0].manifest.order:
            msg = (
                f"{error}. The newest checkpoint, {away.checkpoint}, is in the store only: start"
                " again when it answers"
            )
            raise StoreTransientError(msg) from error

    def _fetch(self, stored: Stored) -> str:
        """Bring a checkpoint of the store to the disk; its own name, unless damage has that.

        Where it does not come to the disk, as there is no room, or as the read that verifies it
        restores it already, the path that it would have: it is read from the store then.
        """
        target = stored.manifest.checkpoint_id
        if (self._config.root / target).exists():
            target = f"{target}-{stored.manifest.digest[:8]}"
        straight = self._reads.has(stored.manifest)
        try:
            if not straight:
                return str(self._worker.ask(Fetch(stored.folder, target), FETCH_S))
        except DirectoryFullError as error:
            log.warning("%s is read straight from the store: %s", stored.folder, error)
        path = str(self._config.root / target)
        if self._verifies and self._reads.first_read.takes(stored.manifest):
            self._reads.first_read.read(self._reads.reader(path, stored))
            self._reads.note(stored.manifest)
        else:
            self._worker.ask(Verify(stored.folder, sizes_only=straight), FETCH_S)
        self._straight[path] = stored.folder
        return path


def _is_any(_: Manifest) -> bool:
    return True


def stored_checkpoint(item: StoredCheckpoint) -> Stored:
    """As the worker tells of it."""
    return Stored(item.folder, Manifest.from_bytes(item.manifest, f"store {item.folder}"))


def listed_in_store(worker: Worker) -> list[StoredCheckpoint]:
    """The job's checkpoints in the store.

    Raises:
        StoreError: the store does not answer.
    """
    answer = worker.ask(ListStore(), _ASK_S)
    return answer if isinstance(answer, list) else []
