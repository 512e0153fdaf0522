"""Takes over the saves and loads of Lightning's `DeepSpeedStrategy`: stages 0 to 3 of ZeRO.

DeepSpeed's engine says what each rank's files hold; they are copied into the arena and committed as
the parts of a sharded save are. Its own loader reads them back.
Source: `DeepSpeedStrategy`, `DeepSpeedEngine.save_checkpoint`, `load_checkpoint`.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.checkpoint_formats.sharded_folders import DEEPSPEED
from bt_lightning.errors import (
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    InvalidSettingError,
)
from bt_lightning.lightning_plugin.deepspeed_checks import refuse_engine, refuse_other_size
from bt_lightning.lightning_plugin.deepspeed_files import guarded_loads, take_files
from bt_lightning.lightning_plugin.taken_strategy import TakenStrategy
from bt_lightning.lightning_plugin.trainer_ranks import ranks_of
from bt_lightning.localdir.atomic_directory import temporary
from bt_lightning.restore.rank_states import rank_states
from bt_lightning.session.checkpoint_paths import is_committed, local_path
from bt_lightning.session.checkpoint_writer import EXTRA
from bt_lightning.session.folder_part_writer import FolderPart, FolderPartWriter
from bt_lightning.session.states_of_ranks import OWN, RANKS
from bt_lightning.store.transfer.fetch_to_disk import bring

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from lightning.pytorch import Trainer

    from bt_lightning.session.draw_part import DrawnPart
    from bt_lightning.snapshot.saver import Saver
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader

_KIND: Final = "DeepSpeedStrategy"
_THROWN_AWAY: Final = ("state_dict", "optimizer_states")
"""Of a checkpoint of Lightning: the engine saves them itself."""


def is_deepspeed(trainer: Trainer) -> bool:
    """Whether DeepSpeed's engine saves and loads."""
    return any(base.__name__ == _KIND for base in type(trainer.strategy).__mro__)


def format_of_strategy(trainer: Trainer) -> str | None:
    """The layout that the strategy resumes from; None is our own."""
    return DEEPSPEED if is_deepspeed(trainer) else None


class TakenDeepSpeed(TakenStrategy):
    """Saves what DeepSpeed's engine saves, and lets it load; one on every rank.

    A save runs the collectives of DeepSpeed's own save; no rank waits for a disk or a network.
    """

    writer: FolderPartWriter | None
    eager = True
    names = ("optimizer_state", "save_checkpoint", "load_checkpoint", "barrier")

    def begin_saves(self) -> FolderPartWriter:
        """Called on every rank when the state is restored: from now on it saves parts.

        Raises:
            InvalidSettingError: the engine saves in a way that is not known.
        """
        refuse_engine(self._engine)
        self.writer = FolderPartWriter(self._trainer.global_rank)
        self.writer.origin = dict(self._io.bt_io.writer.origin)
        return self.writer

    def prepare(self, saver: Saver) -> None:
        """Called when memory for a save can be allocated in the background."""
        sizes = {}
        for optimizer in self.optimizers():
            for tensor in _tensors_of(optimizer):
                sizes[tensor.data_ptr()] = tensor.nbytes
        module: torch.nn.Module = self._engine.module
        weights = [*module.parameters(), *module.buffers()] if self._writes_weights else []
        saver.prepare(sum(sizes.values()) + sum(weight.nbytes for weight in weights))

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Those within DeepSpeed's, which step the parts of this rank."""
        return [getattr(each, "optimizer", each) for each in self._trainer.optimizers]

    def load_weights(self, path: str) -> dict[str, Any]:
        """Load the weights of a checkpoint, and no state of optimizers."""
        with self._opened(path) as (folder, reader):
            if reader is None:
                msg = f"{folder} was not committed: pass it as ckpt_path if it is DeepSpeed's"
                raise InvalidSettingError(msg)
            with self._guarded(path, folder, reader, None):
                _, found = self._engine.load_checkpoint(
                    str(folder),
                    load_optimizer_states=False,
                    load_lr_scheduler_states=False,
                    load_module_only=True,
                    load_module_strict=self._trainer.lightning_module.strict_loading,
                )
            if found is None:
                msg = f"DeepSpeed found no weights in {folder} for this rank"
                raise CheckpointMismatchError(msg)
            return dict(found)

    # a save

    def _optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The engine saves it, and Lightning throws away what it is given here."""
        if self._saving is not None:
            return {}
        return self._stock["optimizer_state"](optimizer)  # type: ignore[no-any-return]

    def _save_part(self, checkpoint: dict[str, Any], filepath: str | Path, part: DrawnPart) -> None:
        added = checkpoint.get(EXTRA, {})
        left_out = (*_THROWN_AWAY, EXTRA)
        client = {key: value for key, value in checkpoint.items() if key not in left_out}
        with temporary(self._io.bt_root) as folder:
            files = take_files(self._engine, folder, client)
        size, stage = self._trainer.world_size, self._engine.zero_optimization_stage()
        zero = {"stage": int(stage), "world_size": size}
        saved = FolderPart(
            files=files,
            step=checkpoint["global_step"],
            epoch=checkpoint["epoch"],
            metrics=added.get("metrics", {}),
            origin={"format": DEEPSPEED, "deepspeed": zero, **added.get("origin", {})},
            resumable="optimizer_states" in checkpoint,
            layout=f"{DEEPSPEED} {zero}",
            own=added,
        )
        assert self.writer is not None  # since a part was drawn
        self._io.save_part(self.writer, saved, filepath, part)

    def _refuse(self, error: BaseException) -> None:
        """No rank asks another who writes what."""

    @property
    def _writes_weights(self) -> bool:
        return self._trainer.global_rank == 0 or self._engine.zero_optimization_stage() == 3  # noqa: PLR2004

    # a load

    def _load_checkpoint(self, checkpoint_path: str | Path, *args: Any, **kwargs: Any) -> Any:
        """`kwargs`: `weights_only`, from Lightning 2.6 on."""
        given = args[0] if args else kwargs.get("weights_only")
        with self._opened(checkpoint_path) as (folder, reader):
            if reader is not None and self._trains:
                refuse_other_size(reader.manifest, self._trainer.world_size)
            with self._guarded(checkpoint_path, folder, reader, given):
                found = self._stock["load_checkpoint"](folder, *args, **kwargs)
            if reader is None:
                return found
            return {**found, **self._added(checkpoint_path, reader, given)}

    @contextlib.contextmanager
    def _opened(self, path: str | Path) -> Iterator[tuple[Path, CheckpointReader | None]]:
        """Every rank: the folder of a checkpoint on this node, and who verifies its files.

        What is in a store only is fetched by one rank of each node, and deleted after the block.
        """
        if not self._trains:  # as of a sharded strategy
            self._io.agree_on_path(self._trainer, str(path))
        pinned = str(path) in self._io.bt_evicted.pins
        with self._io.open(path) as reader:
            if reader is None:
                yield local_path(path), None
                return
            if reader.manifest.format != DEEPSPEED:
                msg = (
                    f"{path} is no checkpoint of DeepSpeed, whose engine reads none but its own:"
                    " resume with the strategy that saved it, or take resume='never' or another"
                    " checkpoint directory (BT_CHECKPOINT_DIR)"
                )
                raise InvalidSettingError(msg)
            if not pinned and is_committed(path):
                yield local_path(path), reader
                return
            with self._fetched(reader) as folder:
                yield folder, reader

    @contextlib.contextmanager
    def _fetched(self, reader: CheckpointReader) -> Iterator[Path]:
        ranks, first = ranks_of(self._trainer), self._trainer.local_rank == 0
        with temporary(self._io.bt_root) as built:
            mine: dict[str, Any] = {"node": self._trainer.node_rank}
            if first:
                try:
                    bring(reader, built, built / "files", reader.manifest.files)
                    mine["place"] = str(built / "files")
                except (CheckpointError, OSError) as error:  # all ranks wait to hear of it
                    mine["error"] = str(error)
            said = [json.loads(one) for one in ranks.gather(json.dumps(mine))]
            failed = [one for one in said if "error" in one]
            if failed:
                msg = f"node {failed[0]['node']} cannot fetch {reader.name}: {failed[0]['error']}"
                raise CheckpointNotFoundError(msg)
            here = (one for one in said if one["node"] == mine["node"] and "place" in one)
            try:
                yield Path(next(here)["place"])
            finally:
                ranks.gather("read")  # before it is deleted

    @contextlib.contextmanager
    def _guarded(
        self,
        path: str | Path,
        folder: Path,
        reader: CheckpointReader | None,
        given: bool | None,  # noqa: FBT001 - as Lightning passes it
    ) -> Iterator[None]:
        files = None if reader is None else {each.path: each for each in reader.manifest.files}
        trusted = (self._io.trusted(path) if given is None else given) is False
        with guarded_loads(folder, files, self._io.bt_io.classes(), trusted=trusted):
            yield

    def _added(
        self,
        path: str | Path,
        reader: CheckpointReader,
        given: bool | None,  # noqa: FBT001 - as Lightning passes it
    ) -> dict[str, Any]:
        """What `BTLightning` added on each rank."""
        found = rank_states(
            reader,
            size=_saved_ranks(reader),
            weights_only=self._io.trusted(path) if given is None else given,
            allowed=self._io.bt_io.classes(),
            live_objects=self._io.bt_io.writer.live_objects,
        )
        if not found or found[0] is None:
            return {}
        return {EXTRA: {**found[0], RANKS: [each.get(OWN) for each in found]}}

    @property
    def _engine(self) -> Any:
        return self._trainer.strategy.model


def _saved_ranks(reader: CheckpointReader) -> int:
    said = reader.manifest.origin.get(DEEPSPEED)
    size = said.get("world_size") if isinstance(said, dict) else None
    return size if isinstance(size, int) else 0


def _tensors_of(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    import torch

    for group in optimizer.param_groups:
        yield from group["params"]
    for parameter, state in optimizer.state.items():
        yield parameter
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))
