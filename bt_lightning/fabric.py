"""Asynchronous saves for Lightning's Fabric, by its own `save` and `load`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from bt_lightning.errors import InvalidSettingError
from bt_lightning.lightning_plugin.checkpoint_io import BTCheckpointIO
from bt_lightning.lightning_plugin.lightning_or_pytorch_lightning import (
    CheckpointIO,
    accept_in_both,
)
from bt_lightning.lightning_plugin.routed_checkpoint_io import RoutedCheckpointIO
from bt_lightning.plain_loop.strategy_saves import StrategySaves
from bt_lightning.session.bt_and_evicted_paths import register_store_paths
from bt_lightning.session.checkpoint_paths import DEFAULT_ROOT, absolute_root
from bt_lightning.session.checkpoint_writer import CheckpointWriter
from bt_lightning.session.options import Options
from bt_lightning.session.running_session import RunningSession
from bt_lightning.session.stepped_optimizers import SteppedOptimizers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

    from bt_lightning.restore.read_documents import MapLocation

_OF_TRAINERS = frozenset(
    {"exact", "failures_every", "fit_name", "grace", "interval", "max_overhead", "save_at_end"}
)
"""Options for what Fabric's scripts do by themselves."""


class BTAsyncCheckpointIO(CheckpointIO):
    """A `BTCheckpointIO` whose saves are snapshots that the worker commits and publishes.

    Inside its block, `fabric.save` returns when the state is copied, or can be copied before the
    next optimizer step; before and after it, all is as with `BTCheckpointIO`::

        io = BTAsyncCheckpointIO("checkpoints", "s3://bucket/runs")
        fabric = Fabric(plugins=[io])
        fabric.launch()
        with io:
            state = {"model": model, "optimizer": optimizer, "step": 0}
            if io.latest is not None:
                fabric.load(io.latest, state)
            ...
            fabric.save(io.root / f"checkpoint-{state['step']}", state)

    A strategy whose ranks hold parts of tensors (`ModelParallelStrategy`: FSDP2, tensor
    parallelism) takes no CheckpointIO: make Fabric without it, and `with io.of(fabric):`. Each rank
    saves its own parts then, and loads on any number of ranks. The state is a flat dictionary.

    What is saved outside of the directory is saved as by `BTCheckpointIO`. Generators and the place
    in the data are in a save only if the script puts them there: `bt_lightning.Checkpointer`, which
    works with Fabric as well, does that by itself.

    Args:
        dir: directory of the checkpoints; `$BT_CHECKPOINT_DIR`, else `bt_checkpoints`.
        store: URL of the store for committed checkpoints; `$BT_STORE_URL`, else none.
        allowed: as of `BTCheckpointIO`.
        options: as of `BTLightning`, but those for what only a Trainer does by itself.

    Raises:
        InvalidSettingError: for an argument that cannot be used.
    """

    def __init__(
        self,
        dir: str | os.PathLike[str] | None = None,
        store: str | None = None,
        *,
        allowed: Iterable[object] = (),
        **options: Any,
    ) -> None:
        if refused := sorted(_OF_TRAINERS.intersection(options)):
            msg = f"{', '.join(refused)}: only a Trainer does that, Fabric saves when you say so"
            raise InvalidSettingError(msg)
        if options.get("resume") == "weights":
            msg = (
                'resume="weights": say what to load, as fabric.load(path, {"model": model},'
                " strict=False)"
            )
            raise InvalidSettingError(msg)
        self._options = Options.of(dir=dir, store=store, **options)
        self._plain = BTCheckpointIO(
            allowed, store=store, storage_options=options.get("storage_options")
        )
        self._plain.writer = _FabricWriter(self._plain.classes)
        self._run: RunningSession | None = None
        self._routed: RoutedCheckpointIO | None = None
        self._optimizers: SteppedOptimizers | None = None
        self._strategy: Any = None
        self._saves: StrategySaves | None = None
        accept_in_both(type(self))

    @property
    def root(self) -> Path:
        """The directory of the checkpoints, absolute."""
        return absolute_root(self._options.merged(os.environ).dir or DEFAULT_ROOT)

    @property
    def latest(self) -> str | None:
        """Path of the newest whole checkpoint of disk and store, for `fabric.load`; on every rank.

        None to begin at step 0.

        Raises:
            InvalidSettingError: outside of its block.
        """
        if self._run is None:
            msg = "the CheckpointIO is not open: `with io:`, on every rank, after fabric.launch()"
            raise InvalidSettingError(msg)
        return self._run.start.path

    def of(self, fabric: Any) -> Self:
        """Every rank: save and load by this Fabric, whose strategy takes no CheckpointIO.

        Called after `fabric.launch()`, as `with io.of(fabric):`.
        """
        self._strategy = fabric.strategy
        return self

    def __enter__(self) -> Self:
        """Every rank, after `fabric.launch()`: open the directory and the store.

        Raises:
            DirectoryUnusableError, StoreError, CheckpointCorruptError: on every rank.
        """
        options, root = self._options.merged(os.environ), self.root
        run = RunningSession(options, root)
        start, source = run.start, options.source(root)
        source.prefix = start.prefix
        register_store_paths(source)
        if self._plain.bt.store is None:
            self._plain.bt = source
        routed = RoutedCheckpointIO(self._plain, self._plain, root, run.session, source)
        routed.trust(options.weights_only, own=options.own_weights_only)
        if start.digest is not None:
            run.session.pinned.add(start.digest)
        if start.path is not None and start.folder is not None and start.digest is not None:
            source.pin(start.path, start.folder, start.digest)
        self._plain.writer.origin = {"world_size": run.ranks.world_size}
        self._run, self._routed, self._optimizers = run, routed, SteppedOptimizers()
        if self._strategy is not None:
            self._saves = StrategySaves(self._strategy, run, routed.id_of, routed.open)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Every rank: wait until all is committed and published; others wait for rank 0.

        Raises:
            DirectoryUnusableError, UploadFailedError: what the worker could not do.
        """
        run, optimizers = self._run, self._optimizers
        self._run = self._routed = self._optimizers = None
        if run is None or optimizers is None:
            return
        try:
            if error is None:
                run.begin(optimizers, None)  # what an earlier run left is published, too
            run.end(error)
        finally:
            saves, self._saves, self._strategy = self._saves, None, None
            if saves is not None:
                saves.close()
            optimizers.close()

    @override
    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Mapping[str, object] | None = None,
    ) -> None:
        """Rank 0: snapshot `checkpoint`, of any nesting of tensors and values, as `path`.

        Raises:
            DirectoryUnusableError, UploadFailedError: an earlier save failed.
            UnsupportedStateError: a value can be neither encoded nor pickled.
        """
        run, routed, optimizers = self._run, self._routed, self._optimizers
        if run is None or routed is None or optimizers is None:
            self._plain.save_checkpoint(checkpoint, path, storage_options)
            return
        run.begin(optimizers, _cuda_device(checkpoint))
        run.session.boundary()  # since the last save, the loop may have changed anything
        routed.save_checkpoint(checkpoint, path, storage_options)

    @override
    def load_checkpoint(
        self, path: str | Path, map_location: MapLocation = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Every rank: as `BTCheckpointIO.load_checkpoint`; waits for a save of that path."""
        io = self._routed or self._plain
        return io.load_checkpoint(path, map_location, weights_only)

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        """Rank 0: ask for the removal of a checkpoint, which goes when a newer one is safe."""
        (self._routed or self._plain).remove_checkpoint(path)


class _FabricWriter(CheckpointWriter):
    """Knows a state that can be trained on from, which in Fabric has names of the script's own."""

    @override
    def resumable(self, state: dict[str, Any]) -> bool:
        """Whether it has the state of an optimizer."""
        return any(
            isinstance(value, dict) and "param_groups" in value for value in state.values()
        ) or super().resumable(state)


def _cuda_device(state: Any) -> Any:
    """The CUDA device of the first tensor that has one."""
    parts = state.values() if isinstance(state, dict) else [state]
    for part in parts:
        if getattr(part, "is_cuda", False):
            return part.device
        found = _cuda_device(part) if isinstance(part, dict) else None
        if found is not None:
            return found
    return None
