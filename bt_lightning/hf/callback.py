"""`BTTrainerCallback`: saves, publishes and resumes the checkpoints of a Trainer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from transformers import TrainerCallback

from bt_lightning.errors import InvalidSettingError
from bt_lightning.hf.patched_trainer import patch_trainer
from bt_lightning.hf.training import Training
from bt_lightning.session.checkpoint_paths import absolute_root
from bt_lightning.session.options import Options

if TYPE_CHECKING:
    from collections.abc import Callable

_NOT_OURS: Final = ("strict", "weights_only", "exact", "save_frozen")
"""Options for what the Trainer's own code does."""


class BTTrainerCallback(TrainerCallback):  # type: ignore[misc]  # transformers has no types for it
    """Saves the training state of a Trainer durably, and resumes it automatically.

    Use it as `Trainer(callbacks=[BTTrainerCallback()])`, or with any Trainer built on it, as TRL's.
    The `TrainingArguments` still decide *when* to save (`save_strategy`, `save_steps`), *what*
    (`save_only_model`) and which to keep (`save_total_limit`, `load_best_model_at_end`).
    Checkpoints are the folders that `transformers` reads, with a `bt_manifest.json` in each.

    Args:
        dir: directory of the checkpoints; `$BT_CHECKPOINT_DIR`, else `args.output_dir`. The Trainer
            gets it as its `args.output_dir`.
        store, load_dir, resume, options: as of `BTLightning`, but `strict`, `weights_only`,
            `exact` and `save_frozen`: the Trainer itself loads, and says what is saved.

    Raises:
        InvalidSettingError: from the constructor, for an argument that cannot be used.
        DirectoryUnusableError, StoreError: at the start of `train`, on every rank, for a directory
            or a store that is not writable.
        UploadFailedError: once, at the next step, when the store refuses a checkpoint for good.
        DirectoryFullError: once, at the next step, for a save without space on the disk.
    """

    automatic = False
    """Whether the job runner added it, not the script."""

    def __init__(
        self,
        dir: str | os.PathLike[str] | None = None,
        store: str | None = None,
        load_dir: str | os.PathLike[str] | None = None,
        resume: str = "auto",
        **options: Any,
    ) -> None:
        super().__init__()
        refused = sorted(set(_NOT_OURS).intersection(options))
        if refused:
            msg = f"{', '.join(refused)}: what the Trainer loads is loaded by its own code"
            raise InvalidSettingError(msg)
        given = {"dir": dir, "store": store, "load_dir": load_dir, "resume": resume, **options}
        self._options = Options.of(**given).merged(os.environ)
        self._training: Training | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy in another process trains nothing."""
        return {**vars(self), "_training": None}

    def run(self, trainer: Any, train: Callable[[str | None], Any], asked: Any) -> Any:
        """Every rank: run `Trainer.train`, which calls this, from its beginning to its end.

        Args:
            trainer: the Trainer.
            train: its own code, with the path to resume from.
            asked: what the script gave as `resume_from_checkpoint`.
        """
        self._training = Training(trainer, self._options, asked)
        try:
            return self._training.run(train)
        finally:
            self._training = None

    def on_init_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Every rank: let the Trainer write where the platform keeps it."""
        root = absolute_root(self._options.dir or args.output_dir)
        made = Path(args.output_dir)
        args.output_dir = str(root)
        if made.absolute() != root:
            _remove_empty(made)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Every rank, after the restore: start saving."""
        if self._training is not None:
            callbacks = self._training.trainer.callback_handler.callbacks
            callbacks.sort(key=lambda one: one is not self)  # before the hooks of all others
            self._training.begin()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Every rank: what other callbacks may change here is copied."""
        self._before("on_step_begin")

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Every rank: as `on_step_begin`."""
        self._before("on_epoch_begin")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Every rank: as `on_step_begin`; and what others look for is there."""
        self._before("on_save")

    def on_log(self, args: Any, state: Any, control: Any, **facts: Any) -> None:  # noqa: ARG002
        """Rank that writes: the row that the Trainer logs goes into the log of metrics."""
        if self._training is not None and self._training.boundaries is not None:
            self._training.boundaries.logged(facts.get("logs") or {})

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Every rank: as `on_step_begin`."""
        self._before("on_train_end")

    def _before(self, hook: str) -> None:
        if self._training is not None and self._training.boundaries is not None:
            self._training.boundaries.before_hook(hook)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Every rank: an optimizer step has ended."""
        if self._training is not None and self._training.boundaries is not None:
            self._training.boundaries.step_ended()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Every rank: an epoch has ended."""
        self._before("on_epoch_end")
        if self._training is not None and self._training.boundaries is not None:
            self._training.boundaries.epoch_ended()


def _remove_empty(folder: Path) -> None:
    """Remove the folder that the Trainer has just made and will not use."""
    try:
        folder.rmdir()
    except OSError:
        return


def _callback_of(trainer: Any) -> BTTrainerCallback | None:
    """The script's own one, else the one that joined."""
    found = [
        one for one in trainer.callback_handler.callbacks if isinstance(one, BTTrainerCallback)
    ]
    return min(found, key=lambda one: one.automatic, default=None)


patch_trainer(_callback_of)
