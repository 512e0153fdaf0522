"""Takes over the saves and loads of a strategy whose ranks hold parts of tensors.

Lightning's own ones gather, wait for all ranks, pickle, and commit nothing. They are replaced on
the strategy's instance, by public names; what is no checkpoint of ours (a file of the Tuner, a
path elsewhere, what is saved before the fit begins) reaches the methods that were there.
Source: `Trainer.save_checkpoint`, `_CheckpointConnector.dump_checkpoint` and `resume_start`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bt_lightning.lightning_plugin.trainer_ranks import ranks_of
from bt_lightning.session.load_in_place import LoadInPlace
from bt_lightning.session.shard_exchange import ShardExchange
from bt_lightning.session.shard_writer import ShardWriter
from bt_lightning.snapshot.local_shards import (
    is_fsdp1,
    live_state,
    module_state,
    optimizer_state,
)
from bt_lightning.snapshot.size_estimate import state_size

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from lightning.pytorch import Trainer

    from bt_lightning.lightning_plugin.routed_checkpoint_io import RoutedCheckpointIO
    from bt_lightning.session.parts_of_run import DrawnPart
    from bt_lightning.snapshot.saver import Saver

_KINDS = frozenset({"FSDPStrategy", "ModelParallelStrategy"})
_KEY = "bt_lightning_taken_over"
_SAVE_BARRIER = "Trainer.save_checkpoint"


def is_sharded(trainer: Trainer) -> bool:
    """Whether the ranks of the strategy hold parts of tensors, which each rank saves."""
    return not _KINDS.isdisjoint(base.__name__ for base in type(trainer.strategy).__mro__)


class ShardedStrategy:
    """What stands in for the methods of one Trainer's strategy; one on every rank.

    Every method is called by Lightning on every rank, with the same kind of arguments. None of ours
    runs a collective, but for FSDP1 (`FSDPStrategy`), whose state torch gathers by units.
    """

    def __init__(self, trainer: Trainer, io: RoutedCheckpointIO, *, strict: bool | None) -> None:
        self._trainer, self._io, self._strict = trainer, io, strict
        strategy: Any = trainer.strategy
        self.writer: ShardWriter | None = None
        """Of the parts of this rank, while a fit saves."""
        self._exchange: ShardExchange | None = None
        self._stock = {
            name: getattr(strategy, name)
            for name in (
                "lightning_module_state_dict",
                "optimizer_state",
                "save_checkpoint",
                "load_checkpoint",
                "barrier",
            )
        }
        self._before = {name: vars(strategy).get(name) for name in self._stock}
        self._save, self._save_before = (
            trainer.save_checkpoint,
            vars(trainer).get("save_checkpoint"),
        )
        self._saving: DrawnPart | None = None
        """This rank's part of the save by us that is under way."""
        self._weights: dict[str, Any] = {}
        """The live weights, while they are saved."""

    def install(self) -> None:
        """Take the methods over."""
        strategy: Any = self._trainer.strategy
        vars(strategy).update({name: getattr(self, f"_{name}") for name in self._stock})
        vars(strategy)[_KEY] = self
        vars(self._trainer)["save_checkpoint"] = self._trainer_save

    def begin_saves(self) -> ShardWriter:
        """Called on every rank when the state is restored: from now on it saves parts."""
        io, ranks = self._io.bt_io, ranks_of(self._trainer)
        self._exchange = ShardExchange(ranks)
        self.writer = ShardWriter(self._exchange, io.classes)
        self.writer.origin, self.writer.trusted = io.writer.origin, io.writer.trusted
        self.writer.live_objects = io.writer.live_objects
        return self.writer

    def prepare(self, saver: Saver) -> None:
        """Called when the state has another structure: let the ranks tell of it beside training."""
        module, optimizers = self._module, self._trainer.optimizers
        saver.prepare(state_size(module, optimizers))
        if self.writer is not None:
            self.writer.begin(live_state(module, optimizers))

    def give_back(self) -> None:
        """Give the methods back that were there."""
        if self._exchange is not None:
            self._exchange.close()
        self._exchange = self.writer = None
        own = vars(self._trainer.strategy)
        del own[_KEY]
        for name, before in self._before.items():
            _put_back(own, name, before)
        _put_back(vars(self._trainer), "save_checkpoint", self._save_before)

    def load_weights(self, path: str) -> dict[str, Any]:
        """Load the weights of a checkpoint, and no state of optimizers."""
        return self._load(path, optimizers=False)

    # a save

    def _trainer_save(self, filepath: str | Path, *args: Any, **kwargs: Any) -> None:
        """As `Trainer.save_checkpoint`, which knows the path before the state is collected."""
        if self.writer is None or not self._io.is_saving or not self._io.is_ours(filepath):
            self._save(filepath, *args, **kwargs)
            return
        try:
            with self._io.next_part() as self._saving:  # before hooks, which may fail on one rank
                self._save(filepath, *args, **kwargs)
        finally:
            self._saving, self._weights = None, {}

    def _lightning_module_state_dict(self) -> dict[str, Any]:
        """The live tensors, which callbacks see in `checkpoint["state_dict"]`."""
        if self._saving is not None:
            self._weights = module_state(self._module)
            return dict(self._weights)
        return self._stock["lightning_module_state_dict"]()  # type: ignore[no-any-return]

    def _optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        if self._saving is not None:
            own = getattr(optimizer, "_optimizer", optimizer)  # of a LightningOptimizer
            named = self._module if is_fsdp1(self._module) else self._weights
            return optimizer_state(named, own)
        return self._stock["optimizer_state"](optimizer)  # type: ignore[no-any-return]

    def _save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        if self._saving is None or self.writer is None:
            self._stock["save_checkpoint"](checkpoint, filepath, storage_options=storage_options)
            return
        if storage_options is not None:
            msg = "storage_options belong to a URL; the path given is in the checkpoint directory"
            raise TypeError(msg)
        self._io.save_part(self.writer, checkpoint, filepath, self._saving)

    def _barrier(self, name: str | None = None, *args: Any, **kwargs: Any) -> None:
        """With NCCL, the one behind a save would make the host wait for all queued kernels."""
        if self._saving is None or name != _SAVE_BARRIER:
            self._stock["barrier"](name, *args, **kwargs)

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

    @property
    def _trains(self) -> bool:
        """Whether what is loaded is trained on, not only evaluated."""
        return self._trainer.state.fn == "fit"


def sharded_strategy(trainer: Trainer) -> ShardedStrategy | None:
    """What has been taken over of a Trainer, if anything."""
    return vars(trainer.strategy).get(_KEY)


def take_strategy(trainer: Trainer, io: RoutedCheckpointIO, *, strict: bool | None) -> None:
    """Every rank, at `setup`: take over a strategy that `is_sharded`; others are left alone."""
    give_back(trainer)
    if is_sharded(trainer):
        ShardedStrategy(trainer, io, strict=strict).install()


def give_back(trainer: Trainer) -> None:
    """Undo `take_strategy`; idempotent."""
    taken = sharded_strategy(trainer)
    if taken is not None:
        taken.give_back()


def _put_back(own: dict[str, Any], name: str, before: Any) -> None:
    if before is None:
        own.pop(name, None)
    else:
        own[name] = before
