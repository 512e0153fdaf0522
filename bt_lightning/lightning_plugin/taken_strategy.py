"""Takes methods of a strategy over on its instance, by public names, and gives them back.

What is no checkpoint of ours (a file of the Tuner, a path elsewhere, what is saved before the fit
begins) reaches the methods that were there. Source: `Trainer.save_checkpoint`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch
    from lightning.pytorch import Trainer

    from bt_lightning.lightning_plugin.routed_checkpoint_io import RoutedCheckpointIO
    from bt_lightning.session.draw_part import DrawnPart
    from bt_lightning.snapshot.saver import Saver

_KEY = "bt_lightning_taken_over"
_SAVE_BARRIER = "Trainer.save_checkpoint"


class TakenStrategy(ABC):
    """What stands in for the methods of one Trainer's strategy; one on every rank.

    Every method is called by Lightning on every rank, with the same kind of arguments.
    """

    names: tuple[str, ...] = (
        "lightning_module_state_dict",
        "optimizer_state",
        "save_checkpoint",
        "load_checkpoint",
        "barrier",
    )
    """The methods that are taken over; `_name` is ours."""

    def __init__(self, trainer: Trainer, io: RoutedCheckpointIO) -> None:
        self._trainer, self._io = trainer, io
        strategy: Any = trainer.strategy
        self.writer: Any = None
        """Of the parts of this rank, while a fit saves."""
        self._stock = {name: getattr(strategy, name) for name in self.names}
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

    def give_back(self) -> None:
        """Give the methods back that were there."""
        self.writer = None
        own = vars(self._trainer.strategy)
        del own[_KEY]
        for name, before in self._before.items():
            _put_back(own, name, before)
        _put_back(vars(self._trainer), "save_checkpoint", self._save_before)

    @abstractmethod
    def begin_saves(self) -> Any:
        """Called on every rank when the state is restored: from now on it saves parts."""

    @abstractmethod
    def prepare(self, saver: Saver) -> None:
        """Called when the state has another structure, or memory for it is to be allocated."""

    @abstractmethod
    def load_weights(self, path: str) -> dict[str, Any]:
        """Load the weights of a checkpoint, and no state of optimizers."""

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Torch's optimizers, whose parameters and state only their steps change."""
        return self._trainer.optimizers

    eager = False
    """Whether all is copied before a save returns: more than steps of optimizers changes it."""

    # a save

    def _trainer_save(self, filepath: str | Path, *args: Any, **kwargs: Any) -> None:
        """As `Trainer.save_checkpoint`, which knows the path before the state is collected."""
        if self.writer is None or not self._io.is_saving or not self._io.is_ours(filepath):
            self._save(filepath, *args, **kwargs)
            return
        try:
            # before hooks, which may fail on one rank
            with self._io.draw_part(self._refuse) as self._saving:
                self._save(filepath, *args, **kwargs)
        finally:
            self._saving, self._weights = None, {}

    @abstractmethod
    def _refuse(self, error: BaseException) -> None:
        """A save failed on this rank before it had its part: let no rank wait for its word."""

    def _save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        if self._saving is None or self.writer is None:
            self._stock["save_checkpoint"](checkpoint, filepath, storage_options=storage_options)
            return
        if storage_options is not None:
            msg = "storage_options belong to a URL; the path given is in the checkpoint directory"
            raise TypeError(msg)
        self._save_part(checkpoint, filepath, self._saving)

    @abstractmethod
    def _save_part(self, checkpoint: dict[str, Any], filepath: str | Path, part: DrawnPart) -> None:
        """Save this rank's part of a checkpoint of ours."""

    def _barrier(self, name: str | None = None, *args: Any, **kwargs: Any) -> None:
        """With NCCL, the one behind a save would make the host wait for all queued kernels."""
        if self._saving is None or name != _SAVE_BARRIER:
            self._stock["barrier"](name, *args, **kwargs)

    # a load

    @property
    def _trains(self) -> bool:
        """Whether what is loaded is trained on, not only evaluated."""
        return self._trainer.state.fn == "fit"


def taken_strategy(trainer: Trainer) -> TakenStrategy | None:
    """What has been taken over of a Trainer, if anything."""
    return vars(trainer.strategy).get(_KEY)


def _put_back(own: dict[str, Any], name: str, before: Any) -> None:
    if before is None:
        own.pop(name, None)
    else:
        own[name] = before
