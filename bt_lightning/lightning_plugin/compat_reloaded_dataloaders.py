"""Resumes a fit whose dataloaders Lightning makes anew (`reload_dataloaders_every_n_epochs`).

Lightning saves neither when it reloaded last nor what the generators were then: after a resume it
would reload in other epochs, and a hook that draws would give other data. At an epoch's end, where
an uninterrupted run reloads next, it would also make one iterator where that run makes two.
Source: `_FitLoop.setup_data`, `_FitLoop.on_advance_start`, `_TrainingEpochLoop.on_run_start`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from bt_lightning.lightning_plugin.compat_dataloaders import (
    epochs_trained,
    train_loaders,
    wrapped_sampler,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning.pytorch import Trainer

Replaced = Literal["same", "new"] | None
"""Whether a provisional dataloader was replaced, and by one with the same sampler."""


class ReloadedDataloaders:
    """When the dataloaders of a fit were made, and from which generators; one on every rank."""

    def __init__(self) -> None:
        self._saved: dict[str, Any] | None = None
        """What the checkpoint says, until the dataloaders of the resumed fit are made."""
        self._drawn_from: dict[str, Any] | None = None
        """The generators when the train dataloader was made last."""
        self._validation_epoch: int | None = None
        self._provisional: list[Any] = []
        """What gave the provisional dataloader its order."""
        self.is_provisional = False
        """Whether the train dataloader is replaced before its first batch, as the fit resumes where
        Lightning reloads."""

    def collect(self, trainer: Trainer) -> dict[str, Any] | None:
        """What a checkpoint says of this moment, on this rank; None if nothing is reloaded."""
        if not _period(trainer):
            return None
        loop: Any = trainer.fit_loop
        return {
            "train": loop._last_train_dl_reload_epoch,
            "validation": loop.epoch_loop.val_loop._last_val_dl_reload_epoch,
            "generators": self._drawn_from,
        }

    def load(self, saved: dict[str, Any] | None) -> None:
        """Called on every rank with what `collect` said there; None: nothing was said."""
        self._saved = saved

    def begin(
        self,
        trainer: Trainer,
        generators: Callable[[], dict[str, Any]],
        restore: Callable[[dict[str, Any]], None],
    ) -> None:
        """Called when the fit starts, before its dataloaders are made."""
        loop: Any = trainer.fit_loop
        vars(loop).pop("setup_data", None)  # of an earlier fit
        if not _period(trainer):
            self._saved = None
            return
        original = loop.setup_data

        def setup_data() -> None:
            saved, self._saved = self._saved, None
            if saved is not None:
                self._resume(trainer, saved, restore, original)
            else:
                if loop._combined_loader is None or loop._should_reload_train_dl:
                    self._drawn_from = generators()
                original()

        loop.setup_data = setup_data

    def _resume(
        self,
        trainer: Trainer,
        saved: dict[str, Any],
        restore: Callable[[dict[str, Any]], None],
        setup_data: Callable[[], None],
    ) -> None:
        loop: Any = trainer.fit_loop
        self._drawn_from, self._validation_epoch = saved["generators"], saved["validation"]
        if self._drawn_from is not None:
            restore(self._drawn_from)
        self.is_provisional = epochs_trained(trainer) - saved["train"] >= _period(trainer)
        setup_data()
        loop._last_train_dl_reload_epoch = saved["train"]
        if self.is_provisional:
            self._provisional = _samplers(trainer)
            loop._resuming_from_checkpoint = False  # or the epoch makes no second iterator
        self.is_provisional = False

    def replaced(self, trainer: Trainer) -> Replaced:
        """What the train dataloader now is, in the place of a provisional one; once in a fit.

        A `"new"` one, of a hook, does not go on with the generator that the last one had.
        """
        found, self._provisional = self._provisional, []
        pairs = zip(found, _samplers(trainer), strict=False)
        same = all(one is other for one, other in pairs)
        return None if not found else "same" if same else "new"

    def reset(self, trainer: Trainer) -> None:
        """Called when a fit has ended: let Lightning make dataloaders by itself."""
        vars(trainer.fit_loop).pop("setup_data", None)
        self.__init__()  # type: ignore[misc]

    def after_train_start(self, trainer: Trainer) -> None:
        """Called when the validation's dataloaders are made: when they were made last is known."""
        if self._validation_epoch is not None:
            val_loop: Any = trainer.fit_loop.epoch_loop.val_loop
            val_loop._last_val_dl_reload_epoch = self._validation_epoch
            self._validation_epoch = None


def _period(trainer: Trainer) -> int:
    return int(vars(trainer).get("reload_dataloaders_every_n_epochs") or 0)


def _samplers(trainer: Trainer) -> list[Any]:
    """The script's own sampler of each train dataloader."""
    return [
        wrapped_sampler(getattr(getattr(loader, "batch_sampler", None), "sampler", loader))
        for loader in train_loaders(trainer)
    ]
