"""`BTModelCheckpoint`: Lightning's `ModelCheckpoint` with this package's directory and names."""

from __future__ import annotations

from datetime import timedelta  # noqa: TC003 - LightningCLI resolves the annotations
from pathlib import Path  # noqa: TC003
from typing import TYPE_CHECKING, Literal

from typing_extensions import override

from bt_lightning.errors import InvalidSettingError
from bt_lightning.lightning_plugin.lightning_or_pytorch_lightning import ModelCheckpoint
from bt_lightning.session.argument_checks import duration

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class BTModelCheckpoint(ModelCheckpoint):
    """`ModelCheckpoint` for use beside `BTLightning`; every argument is spelled out and typed.

    Equal to `ModelCheckpoint(...)` beside `BTLightning()`, with `save_last=False` and
    `save_top_k=1` as the defaults; LightningCLI can set each argument by name.

    Args:
        monitor: metric that decides what to keep; None keeps the newest.
        mode: whether a smaller (`"min"`) or greater (`"max"`) metric is better.
        save_top_k: how many to keep; -1 all, 0 none.
        save_last: also keep the newest under the name `last`, as a copy (True) or a link.
        every_n_train_steps: save after this number of optimizer steps.
        train_time_interval: save after this time: a `timedelta`, or seconds as a number.
        every_n_epochs: save after this number of epochs.
        save_on_train_epoch_end: save at the end of the train epoch instead of after validation.
        save_weights_only: save no optimizers; such a checkpoint cannot be resumed.
        save_on_exception: save when training fails; not exact, see docs/reference/guarantees.md.
        verbose: log each save.
        dirpath: another directory than `$BT_CHECKPOINT_DIR`.
        filename: another name than `checkpoint-{step}`.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        save_top_k: int = 1,
        save_last: bool | Literal["link"] | None = None,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | float | None = None,
        every_n_epochs: int | None = None,
        save_on_train_epoch_end: bool | None = None,
        save_weights_only: bool = False,
        save_on_exception: bool = False,
        verbose: bool = False,
        dirpath: str | Path | None = None,
        filename: str | None = None,
    ) -> None:
        every = train_time_interval
        if every is not None:
            every = duration("train_time_interval", every)
        newer = {"save_on_exception": True} if save_on_exception else {}  # not in Lightning 2.4
        super().__init__(
            dirpath=dirpath,
            filename=filename,
            monitor=monitor,
            verbose=verbose,
            save_last=save_last,
            save_top_k=save_top_k,
            save_weights_only=save_weights_only,
            mode=mode,
            every_n_train_steps=every_n_train_steps,
            train_time_interval=every,
            every_n_epochs=every_n_epochs,
            save_on_train_epoch_end=save_on_train_epoch_end,
            **newer,
        )

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the Trainer is of the same package and has a `BTLightning`."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        if self not in trainer.checkpoint_callbacks:
            msg = (
                f"BTModelCheckpoint was made for {ModelCheckpoint.__module__.split('.')[0]}, and"
                f" this Trainer is of {type(trainer).__module__.split('.')[0]}: import only one of"
                " them, before bt_lightning"
            )
            raise InvalidSettingError(msg)
        if not any(callback.state_key == "BTLightning" for callback in callbacks):
            msg = "BTModelCheckpoint needs BTLightning() in the Trainer's callbacks as well"
            raise InvalidSettingError(msg)
        super().setup(trainer, pl_module, stage)
