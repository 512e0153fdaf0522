"""`BTLightning`: the callback that saves, publishes and resumes the checkpoints of a Trainer."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import override

from bt_lightning.lightning_plugin import compat, compat_resume
from bt_lightning.lightning_plugin.added_to_saves import AddedToSaves
from bt_lightning.lightning_plugin.checkpoint_io import BTCheckpointIO, patch_lightning
from bt_lightning.lightning_plugin.ckpt_path_last_best import restore_last_model_path
from bt_lightning.lightning_plugin.compat_config import patch_saved_config
from bt_lightning.lightning_plugin.compat_resume import record_path_selection
from bt_lightning.lightning_plugin.deepspeed_strategy import format_of_strategy
from bt_lightning.lightning_plugin.deferred_saves import save_deferred_now
from bt_lightning.lightning_plugin.fit_identity_of_trainer import FitsOfCallback
from bt_lightning.lightning_plugin.lightning_or_pytorch_lightning import Callback
from bt_lightning.lightning_plugin.logger_start import begin_loggers
from bt_lightning.lightning_plugin.model_checkpoint_paths import (
    find_checkpoint_paths,
    set_checkpoint_paths,
)
from bt_lightning.lightning_plugin.resume_fit import arrange_resume, cancel_resume
from bt_lightning.lightning_plugin.routed_checkpoint_io import RoutedCheckpointIO, install_io
from bt_lightning.lightning_plugin.save_boundary import SaveBoundary
from bt_lightning.lightning_plugin.sharded_strategy import give_back, has_parts, take_strategy
from bt_lightning.lightning_plugin.strategy_check import refuse_strategy
from bt_lightning.lightning_plugin.trainer_checks import (
    refuse_duplicates,
    refuse_names,
    warn_of_no_saves,
)
from bt_lightning.lightning_plugin.trainer_ranks import ranks_of
from bt_lightning.lightning_plugin.weight_change_watch import begin_saves, close_saves
from bt_lightning.session.base_of_run import BaseOfRun
from bt_lightning.session.options import Options
from bt_lightning.session.rank_session import RankSession
from bt_lightning.session.session_config import Resume  # noqa: TC001
from bt_lightning.session.start_point import OfferedCheckpoint
from bt_lightning.snapshot.save_record import Overlap, Policy  # noqa: TC001 - LightningCLI resolves them
from bt_lightning.worker.worker_handle import unlimited

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from bt_lightning.lightning_plugin.model_checkpoint_paths import CheckpointPaths
    from bt_lightning.session.shared_directory_check import ResumedFrom

record_path_selection()


_NOT_GIVEN = ("self", "__class__")
"""Local names of `__init__` that are no arguments of the user's."""


class BTLightning(Callback):
    """Saves the training state of a Lightning run durably, and resumes it automatically.

    Use it as `L.Trainer(callbacks=[BTLightning()])`. The Trainer's `ModelCheckpoint` callbacks, the
    default one included, still decide *when* to save and *what* to keep.

    Args:
        dir: directory of the checkpoints; `$BT_CHECKPOINT_DIR`, else `bt_checkpoints` in the
            Trainer's `default_root_dir`.
        store: URL of the store for committed checkpoints, of any fsspec filesystem;
            `$BT_STORE_URL`, else none (on Baseten the platform uploads).
        load_dir: directory with checkpoints of earlier jobs; `$BT_LOAD_CHECKPOINT_DIR`.
        resume: `"auto"` resumes from the newest usable checkpoint if there is one; `"require"`
            fails if there is none; `"never"` starts fresh; `"weights"` loads only the weights of
            a checkpoint in `load_dir` (an interrupted run resumes as with `"auto"`).
        strict: whether names of weights must match; None: the module's `strict_loading`.
        weights_only: False also loads pickled values, which runs code that the checkpoint names.
            `BT_WEIGHTS_ONLY=0` does the same for the job's own checkpoints.
        exact: save and restore the random generators and dataloader states of every rank.
        resume_loggers: let the known loggers of a restarted fit go on with their runs.
        on_error: `"raise"` a failed upload, or a save without space on the disk or in the store,
            at the next hook; `"warn"` warns and continues.
        drain_timeout: longest wait for the store at the end of a run. Each time is a `timedelta`,
            or seconds as a number.
        storage_options: keyword arguments of the store's fsspec filesystem.
        upload_mb_s: limit for the uploads of one rank, in megabytes (10^6 bytes) per second;
            `$BT_UPLOAD_MB_S`, else none. It does not apply to a store that is a folder.
        content_md5: send a `Content-MD5` with each part, for S3 buckets that require it.
        project: name of the project in the store; `$BT_TRAINING_PROJECT_NAME`, else `default`.
        job: name of the job in the store; `$BT_TRAINING_JOB_ID`, else made for a new `dir`.
        fit_name: name of what the next `fit` trains, in a script with several fits that nothing
            else tells apart; its folder below `dir` unless it is the job's first. `$BT_FIT_NAME`.
        snapshot: `"lazy"` copies what only optimizers change during forward and backward, `"eager"`
            all before a save returns; `"auto"` is lazy unless a hook may change weights.
        overlap: what a save does while the previous one is written: `"wait"`, `"skip"` (it is not
            made), or `"latest"` (it replaces a queued one, with two arenas).
        arenas: number of buffers in host memory, each as large as a checkpoint.
        arena_memory: limit for all arenas, in bytes; above it the training thread writes directly.
        hold_memory: time that memory keeps the newest save after a kill. `$BT_HOLD_MEMORY_S`, 30 s.
        grace: time from SIGTERM until the platform kills; `$BT_GRACE_S`. None: unknown.
        save_at_end: also save the state that a fit ends with; `$BT_SAVE_AT_END`, else True.
        interval: also save at this interval, keeping the newest; `"auto"` adapts it to the cost of
            a save and the rate of failures. `$BT_SAVE_INTERVAL`, else none.
        failures_every: for `"auto"`: mean time between failures to assume at first.
        max_overhead: for `"auto"`: the fraction of the time that saves may take.
        volume_size_gib: limit for `dir`, in GiB; `$BT_VOLUME_SIZE_GIB`, else its volume.
        save_frozen: False leaves weights that do not train out of checkpoints, which name that
            base by its digest: each start must make the same. None does so for PEFT models.
        sync_files: also upload all other files below `dir`, once they do not change any more.
        sync_include: patterns of files to upload, else all; `$BT_SYNC_INCLUDE`.
        sync_exclude: patterns of files not to upload; `$BT_SYNC_EXCLUDE`.

    Raises:
        InvalidSettingError: from the constructor, for an argument that cannot be used.
        DirectoryUnusableError, StoreError: at the start of `fit`, on every rank: not writable.
        UploadFailedError: once, at the next hook, when the store refuses a checkpoint for good.
        DirectoryFullError: once, at the next hook, for a save without space on the disk.
    """

    automatic = False
    """Whether Lightning's entry point added it, not the script."""

    def __init__(
        self,
        dir: str | os.PathLike[str] | None = None,
        store: str | None = None,
        load_dir: str | os.PathLike[str] | None = None,
        resume: Resume = "auto",
        *,
        strict: bool | None = None,
        weights_only: bool | None = None,
        exact: bool = True,
        resume_loggers: bool = True,
        on_error: Literal["raise", "warn"] = "raise",
        drain_timeout: timedelta | float = timedelta(seconds=120),
        storage_options: dict[str, Any] | None = None,
        upload_mb_s: float | None = None,
        content_md5: bool = False,
        project: str | None = None,
        job: str | None = None,
        fit_name: str | None = None,
        snapshot: Policy = "auto",
        overlap: Overlap = "wait",
        arenas: int = 1,
        arena_memory: int | None = None,
        hold_memory: timedelta | float | None = None,
        grace: timedelta | float | None = None,
        save_at_end: bool | None = None,
        interval: Literal["auto"] | timedelta | float | None = None,
        failures_every: timedelta | float = timedelta(days=1),
        max_overhead: float = 0.05,
        volume_size_gib: float | None = None,
        save_frozen: bool | None = None,
        sync_files: bool = True,
        sync_include: list[str] | None = None,
        sync_exclude: list[str] | None = None,
    ) -> None:
        given = {name: each for name, each in locals().items() if name not in _NOT_GIVEN}
        super().__init__()
        patch_saved_config()  # before LightningCLI's callback, which may run first
        self._options = Options.of(**given).merged(os.environ)
        self._added = AddedToSaves(exact=exact, loggers=resume_loggers)
        self._session = RankSession(self._options)
        self._base = BaseOfRun(self._options.save_frozen)
        self._routed: RoutedCheckpointIO | None = None
        self._boundary: SaveBoundary | None = None
        self._fits = FitsOfCallback(self._options.fit_name or "")
        self._active = self.goes_on = False
        """Whether a fit runs, and whether that fit began before."""

    @property
    @override
    def state_key(self) -> str:
        return "BTLightning"

    @override
    def __getstate__(self) -> dict[str, Any]:
        """The state for spawned ranks, without this process's worker and boundary."""
        return {**self.__dict__, "_boundary": None}

    # the life of a fit

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Every rank: set up the Trainer; at the start of a fit, choose the start point."""
        refuse_strategy(trainer, self._options)
        paths = find_checkpoint_paths(trainer, self._options)
        # at every stage, since a ModelCheckpoint keeps its first directory
        writers = set_checkpoint_paths(trainer, paths)
        if compat.is_trial(trainer):
            return
        refuse_duplicates(trainer)
        routed = self._install(trainer, paths)
        take_strategy(trainer, routed, strict=self._options.strict)
        if stage != "fit":
            return
        ranks_of(trainer).from_zero(lambda: refuse_names(trainer, paths.root))
        self._clear(trainer)  # left by a fit that ended without its hooks
        if all(callback.save_weights_only for callback in writers):
            self._nobody_saves(trainer, writers)
        self._boundary = SaveBoundary(self._options, paths.root, self._added.exact)
        self._boundary.listen(trainer)
        ranks = ranks_of(trainer)
        ranks.begin_meetings()
        asked, found = compat_resume.selection(trainer)
        load, form = BTCheckpointIO().load_checkpoint, format_of_strategy(trainer)
        offered = OfferedCheckpoint(found, asked, load, form)
        request = partial(self._fits.request, trainer, pl_module)
        self._session.first_read.keeps = not has_parts(trainer)  # else each loads its own
        start = self._session.open(paths.root, ranks, offered, request, sharded=has_parts(trainer))
        set_checkpoint_paths(trainer, paths, start.fit_folder)
        self._fits.folder = start.fit_folder
        self._boundary.interim.folder = paths.root / start.fit_folder
        routed.follow(start)
        self._boundary.connect_ranks(trainer)
        self.goes_on = start.goes_on
        begin_loggers(self._added.loggers, trainer, start, routed)
        self._active, self._session.failing = True, False
        chosen, strict = partial(self._chosen, trainer), self._options.strict
        arrange_resume(trainer, start, self._base, strict=strict, on_chosen=chosen)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Every rank: start saving once the state is restored, which may be behind this hook."""
        if self._active:
            compat_resume.when_restored(trainer, partial(self._begin, trainer, pl_module))

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Every rank, after the restore: let the worker publish and delete; start saving."""
        self._fits.begin(trainer, pl_module)
        restore_last_model_path(trainer)
        assert self._routed is not None  # since `setup`
        self._base.begin()
        self._added.on_fit_start(trainer)
        begin_saves(trainer, pl_module, self._session, self._routed)
        if self._boundary is not None:
            self._boundary.begin_fit(trainer, pl_module, self._session)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Every rank: restore the random generators."""
        if self._active:
            self._added.on_train_start(trainer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Each rank that writes: raise failures of the worker; microseconds if there is none."""
        self._session.poll()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As `on_train_batch_end`."""
        if self._active:
            self._session.poll()

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Every rank: publish committed checkpoints; further errors become warnings."""
        if self._active and not (self._boundary and self._boundary.signals.stop):
            save_deferred_now(trainer, pl_module, exception)
        give_back(trainer)
        self._session.failing = True
        self._session.end_fit(None)
        session = self._session.take()
        boundary, self._boundary = self._boundary, None
        if boundary is not None:
            boundary.fail(exception)
        self._clear(trainer)
        if session is not None:
            session.abandon(boundary.left_s if boundary is not None else unlimited)
        if boundary is not None:
            boundary.end_fit(trainer, session, failed=True)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Rank 0: wait for the store (at most `drain_timeout`), end the worker; others wait."""
        ended = self._active and not (self._boundary and self._boundary.signals.stop)
        self._active = False
        self._session.end_fit(trainer.global_step if ended else None)
        session = self._session.take()
        boundary, self._boundary = self._boundary, None
        close_saves(trainer)
        give_back(trainer)
        self._added.end(trainer)
        if boundary is None:
            return
        try:
            if session is not None:
                self._session.report(lambda: boundary.finish_session(session))
        except BaseException:
            boundary.end_fit(trainer, session, failed=True)
            raise
        boundary.end_fit(trainer, session, failed=False)
        if boundary.ends_by_signal:
            raise boundary.exit_by_signal(trainer)
        self._session.close_fit()

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Every rank: as `AddedToSaves.collect`."""
        if self._active and self._boundary is not None:
            self._added.collect(trainer, checkpoint, self._session, self._boundary)

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Every rank: restore what `on_save_checkpoint` added."""
        if self._active:
            self._added.on_load(trainer, checkpoint)

    def _nobody_saves(self, trainer: Trainer, writers: list[Any]) -> None:
        if self._options.interval is None:
            warn_of_no_saves(trainer, writers)

    def _clear(self, trainer: Trainer) -> None:
        """Undo the setup of a fit that did not start or end regularly."""
        self._active = False
        self._session.end_fit(None)
        close_saves(trainer)
        cancel_resume(trainer)
        self._added.reset(trainer)
        self._session.close()
        boundary, self._boundary = self._boundary, None
        if boundary is not None:
            boundary.end_fit(trainer, None, failed=True)

    def _install(self, trainer: Trainer, paths: CheckpointPaths) -> RoutedCheckpointIO:
        source = replace(self._options.source(paths.root), prefix=paths.prefix)
        self._routed = install_io(trainer, paths.root, self._session, source)
        self._routed.trust(self._options.weights_only, own=self._options.own_weights_only)
        patch_lightning()
        return self._routed

    def _chosen(self, trainer: Trainer, path: str | None) -> ResumedFrom:
        """Every rank: note that the run resumes from `path`, which it must not delete."""
        assert self._routed is not None  # since `setup`
        if not has_parts(trainer):  # whose weights are all stored
            writer = self._routed.bt_io.writer
            self._base.note(trainer.lightning_module, writer, ranks_of(trainer))
        chosen = self._routed.agree_on_path(trainer, path)
        if chosen.digest is not None:
            self._session.pinned.add(chosen.digest)
        return chosen
