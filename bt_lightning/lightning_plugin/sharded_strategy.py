"""Takes over the saves and loads of a strategy whose ranks hold parts of tensors.

Lightning's own ones gather, wait for all ranks, pickle, and commit nothing.
Source: `Trainer.save_checkpoint`, `_CheckpointConnector.dump_checkpoint` and `resume_start`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bt_lightning.lightning_plugin.deepspeed_strategy import TakenDeepSpeed, is_deepspeed
from bt_lightning.lightning_plugin.taken_strategy import TakenStrategy, taken_strategy
from bt_lightning.lightning_plugin.trainer_ranks import ranks_of
from bt_lightning.session.load_in_place import LoadInPlace
from bt_lightning.session.shard_exchange import ShardExchange
from bt_lightning.session.shard_writer import ShardWriter
from bt_lightning.snapshot.live_optimizers import LiveOptimizers
from bt_lightning.snapshot.live_weights import LiveWeights
from bt_lightning.snapshot.local_shards import live_state, optimizer_state
from bt_lightning.snapshot.module_kinds import is_fsdp1
from bt_lightning.snapshot.size_estimate import state_size

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from lightning.pytorch import Trainer

    from bt_lightning.lightning_plugin.routed_checkpoint_io import RoutedCheckpointIO
    from bt_lightning.session.draw_part import DrawnPart
    from bt_lightning.snapshot.saver import Saver

_KINDS = frozenset({"FSDPStrategy", "ModelParallelStrategy"})


def has_parts(trainer: Trainer) -> bool:
    """Whether the ranks of the strategy hold parts of the state, which each rank saves."""
    return is_deepspeed(trainer) or not _KINDS.isdisjoint(
        base.__name__ for base in type(trainer.strategy).__mro__
    )


class ShardedStrategy(TakenStrategy):
    """Saves and loads DTensors, and the shards of FSDP1; one on every rank.

    None of ours runs a collective, but for FSDP1 (`FSDPStrategy`), whose state torch gathers by
    units.
    """

    writer: ShardWriter | None

    def __init__(self, trainer: Trainer, io: RoutedCheckpointIO, *, strict: bool | None) -> None:
        super().__init__(trainer, io)
        self._strict = strict
        self._exchange: ShardExchange | None = None
        self._live, self._optimizers = LiveWeights(), LiveOptimizers()

    def begin_saves(self) -> ShardWriter:
        """Called on every rank when the state is restored: from now on it saves parts."""
        io, ranks = self._io.bt_io, ranks_of(self._trainer)
        self._exchange = ShardExchange(ranks, self._io.parts_drawn)
        self.writer = ShardWriter(self._exchange, io.classes)
        self.writer.origin, self.writer.trusted = io.writer.origin, io.writer.trusted
        self.writer.live_objects = io.writer.live_objects
        return self.writer

    def prepare(self, saver: Saver) -> None:
        """Called when the state has another structure: let the ranks tell of it beside training."""
        module, optimizers = self._module, self._trainer.optimizers
        saver.prepare(state_size(module, optimizers))
        # with FSDP1 ranks communicate, and come here by what each trains of the flat parameters
        if self.writer is not None and not is_fsdp1(module):
            self.writer.begin(live_state(module, optimizers, self._live.of(module)))

    def give_back(self) -> None:
        """Give the methods back that were there."""
        if self._exchange is not None:
            self._exchange.close()
        self._exchange = None
        self._live.clear()
        self._optimizers.clear()
        super().give_back()

    def load_weights(self, path: str) -> dict[str, Any]:
        """Load the weights of a checkpoint, and no state of optimizers."""
        return self._load(path, optimizers=False)

    # a save

    def _refuse(self, error: BaseException) -> None:
        if self.writer is not None:
            self.writer.refuse(error)

    def _lightning_module_state_dict(self) -> dict[str, Any]:
        """The live tensors, which callbacks see in `checkpoint["state_dict"]`."""
        if self._saving is not None:
            self._weights = self._live.of(self._module)
            return dict(self._weights)
        return self._stock["lightning_module_state_dict"]()  # type: ignore[no-any-return]

    def _optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        if self._saving is not None:
            own = getattr(optimizer, "_optimizer", optimizer)  # of a LightningOptimizer
            if self._live.is_fsdp1:
                return optimizer_state(self._module, own)
            return self._optimizers.of(self._weights, own)
        return self._stock["optimizer_state"](optimizer)  # type: ignore[no-any-return]

    def _save_part(self, checkpoint: dict[str, Any], filepath: str | Path, part: DrawnPart) -> None:
        assert self.writer is not None  # since a part was drawn
        self._io.save_part(self.writer, checkpoint, filepath, part)

    # a load

    def _load_checkpoint(self, checkpoint_path: str | Path, *args: Any, **kwargs: Any) -> Any:
        """`kwargs`: `weights_only`, from Lightning 2.6 on."""
        return self._load(checkpoint_path, *args, optimizers=self._trains, **kwargs)

    def _load(
        self, path: str | Path, *args: Any, optimizers: bool, **kwargs: Any
    ) -> dict[str, Any]:
        io, given = self._io, args[0] if args else kwargs.get("weights_only")
        if not self._trains:  # ranks that read at different moments would mix two checkpoints
            io.agree_on_path(self._trainer, str(path))
        with io.open(path) as reader:
            if reader is None:
                return self._stock["load_checkpoint"](path, *args, **kwargs)  # type: ignore[no-any-return]
            load = LoadInPlace(
                reader,
                weights_only=io.trusted(path) if given is None else given,
                allowed=io.bt_io.classes(),
                live_objects=io.bt_io.writer.live_objects,
            )
            trained = self._trainer.optimizers if optimizers else ()
            load.fill(self._module, trained, strict=self._is_strict)
            return load.rest

    @property
    def _module(self) -> torch.nn.Module:
        model = self._trainer.strategy.model
        assert model is not None  # since the strategy was set up
        return model

    @property
    def _is_strict(self) -> bool:
        strict = self._trainer.lightning_module.strict_loading
        return strict if self._strict is None else self._strict


def take_strategy(trainer: Trainer, io: RoutedCheckpointIO, *, strict: bool | None) -> None:
    """Every rank, at `setup`: take over a strategy that `has_parts`; others are left alone."""
    give_back(trainer)
    if is_deepspeed(trainer):
        TakenDeepSpeed(trainer, io).install()
    elif has_parts(trainer):
        ShardedStrategy(trainer, io, strict=strict).install()


def give_back(trainer: Trainer) -> None:
    """Undo `take_strategy`; idempotent."""
    taken = taken_strategy(trainer)
    if taken is not None:
        taken.give_back()
