"""What a training starts from: the newest whole checkpoint, or the one that the script names."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError, DirectoryFullError
from bt_lightning.hf.checkpoint_saves import FORMAT
from bt_lightning.hf.patched_trainer import own_method
from bt_lightning.hf.stock_folders import stock_offer
from bt_lightning.localdir.list_and_verify_checkpoints import read_manifest
from bt_lightning.restore.first_read import FirstRead
from bt_lightning.session.checkpoint_paths import is_committed, is_url
from bt_lightning.session.shared_directory_check import ResumedFrom, check_same_view
from bt_lightning.session.start_point import OfferedCheckpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bt_lightning.session.running_session import RunningSession

log = logging.getLogger(__name__)

_STATE: Final = "trainer_state.json"
_OF_TRAINER: Final = re.compile(r"checkpoint-(\d+)")
_EPOCHS, _STEPS_OF_EPOCH, _MAX_STEPS = 0, 1, -1
"""Places in what `set_initial_training_values` returns."""
_WAY_OUT: Final = (
    "Train longer, or start afresh with resume='never' or another checkpoint directory"
    " (BT_CHECKPOINT_DIR)"
)


class StartOfTraining:
    """Made when `train` is called, on every rank.

    Args:
        trainer: the Trainer.
        root: the checkpoint directory, absolute.
        asked: what the script gave as `resume_from_checkpoint`.
    """

    def __init__(self, trainer: Any, root: Path, asked: str | bool | None) -> None:  # noqa: FBT001 - of the Trainer
        self._trainer, self._root = trainer, root
        named = asked if isinstance(asked, str) else None
        self._named = None if named is None or _is_newest(Path(named), root) else named
        self.step: int | None = None
        """The step that it resumes from."""
        self.steps_of_epoch = 0
        """Optimizer steps of an epoch, from the Trainer's start on."""
        self._complete = False
        self._weights: str | None = None
        self._best: str | None = None

    @property
    def offered(self) -> OfferedCheckpoint:
        """What the script names, or a Trainer without us has left, for the session."""
        if self._named is None and self._trainer.args.process_index == 0:
            return stock_offer(self._root, FORMAT)
        return OfferedCheckpoint(self._named, self._named is not None, format=FORMAT)

    def choose(self, run: RunningSession) -> str | None:
        """Every rank: the folder that the Trainer resumes from, the same on each; None for none.

        Raises:
            CheckpointNotFoundError: the script names a folder that is not there, or a rank does
                not see it.
            CheckpointCorruptError: what it names is damaged.
            DirectoryFullError: the disk has no room to fetch it.
        """
        start = run.start
        path = self._named or start.path
        digest = run.ranks.from_zero(lambda: _checked(path, start.digest, self._named))
        if digest is not None:
            run.session.pinned.add(digest)
        if path is None:
            return None
        if start.folder is not None and path == start.path:
            msg = (
                f"{path} is in the store only, and the disk has no room for it: the Trainer resumes"
                " from a folder. Free some space, or give it a larger volume"
            )
            raise DirectoryFullError(msg)
        check_same_view(run.ranks, path, ResumedFrom(digest), start.mark)
        if self._named is None and start.warm:
            self._weights = path
            return None
        self._complete = self._named is None and start.complete
        self.step, self._best = _step_and_best(Path(path) / _STATE)
        return path

    @property
    def best(self) -> str | None:
        """Name of the folder that was best when it was saved, beside the one that it resumes."""
        return self._best

    def methods(self) -> dict[str, Callable[..., Any]]:
        """What is called in place of methods of the Trainer."""
        found: dict[str, Callable[..., Any]] = {"set_initial_training_values": self._initial_values}
        if self._weights is not None and self._trainer.model_init is not None:
            found["call_model_init"] = self._model_init
        return found

    def load_weights(self) -> None:
        """Every rank: load the weights that a new training starts from, if there are some."""
        if self._weights is not None and self._trainer.model_init is None:
            own_method(self._trainer, "_load_from_checkpoint")(self._weights)

    @contextlib.contextmanager
    def best_in(self, folder: Path) -> Iterator[None]:
        """In this block, the state that the Trainer reads names its best checkpoint in `folder`.

        The state names it by the path that it had where it was saved.
        """
        from transformers import TrainerState

        original, best = vars(TrainerState)["load_from_json"], self._best

        def load_from_json(_: Any, json_path: str) -> Any:
            state = original.__func__(TrainerState, json_path)
            if state.best_model_checkpoint is not None and best is not None:
                state.best_model_checkpoint = str(folder / best)
            return state

        TrainerState.load_from_json = classmethod(load_from_json)
        try:
            yield
        finally:
            TrainerState.load_from_json = original

    def _model_init(self, *given: Any, **named: Any) -> Any:
        model = own_method(self._trainer, "call_model_init")(*given, **named)
        own_method(self._trainer, "_load_from_checkpoint")(self._weights, model)
        return model

    def _initial_values(self, *given: Any, **named: Any) -> Any:
        """In place of the Trainer's method: no epoch is left if no step is.

        The Trainer itself would train one step more in an epoch that `max_steps` cuts off.
        """
        trainer, step = self._trainer, self.step
        values = own_method(trainer, "set_initial_training_values")(*given, **named)
        self.steps_of_epoch = values[_STEPS_OF_EPOCH]
        if step is None or not (self._complete or step >= values[_MAX_STEPS]):
            return values
        log.warning("nothing is left to train: the checkpoint is of step %d. %s", step, _WAY_OUT)
        trained = step // values[_STEPS_OF_EPOCH]
        return (min(values[_EPOCHS], trained), *values[_EPOCHS + 1 :])


def _is_newest(named: Path, root: Path) -> bool:
    """Whether a script has looked for the newest folder itself: then the newest one is meant."""
    named = named.absolute()
    if named.parent.resolve() != root or not is_committed(named):
        return False
    steps = [int(m[1]) for one in root.iterdir() if (m := _OF_TRAINER.fullmatch(one.name))]
    mine = _OF_TRAINER.fullmatch(named.name)
    return mine is not None and int(mine[1]) == max(steps)


def _checked(path: str | None, digest: str | None, named: str | None) -> str | None:
    """Rank 0: the digest of the manifest in `path`; what the script names is verified."""
    if path is None or named is None:
        return digest
    if is_url(named) or not Path(named).is_dir():
        msg = f"resume_from_checkpoint is {named!r}: there is no such folder"
        raise CheckpointNotFoundError(msg)
    if not is_committed(path):
        return None
    FirstRead().verify(Path(path))
    return read_manifest(Path(path)).digest


def _step_and_best(file: Path) -> tuple[int, str | None]:
    """The step of a state of the Trainer, and the folder name of the best checkpoint."""
    try:
        state = json.loads(file.read_text("utf-8"))
        step, best = state["global_step"], state.get("best_model_checkpoint")
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{file} is no state of a Trainer: {type(error).__name__}: {error}"
        raise CheckpointCorruptError(msg) from error
    name = re.split(r"[/\\\\]", best.rstrip("/"))[-1] if isinstance(best, str) else None
    return int(step), name
