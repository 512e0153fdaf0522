"""Folders of the HF Trainer and of accelerate, with optimizer and generators: when each is whole.

The Trainer writes weights, `training_args.bin`, optimizer, scheduler, generators, and
`trainer_state.json` last, each in place. So a folder that is saved again, after a restart, is a mix
until that file is newer than what was written before it. It deletes folders file by file, so what
its arguments call for must be there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.checkpoint_formats.hf_files import (
    check_json_files,
    check_tensor_files,
    is_weights,
    model_facts,
)
from bt_lightning.checkpoint_formats.names_in_paths import epoch_of_name, step_of_name
from bt_lightning.checkpoint_formats.results import Whole
from bt_lightning.checkpoint_formats.sharded_folders import (
    LATEST,
    check_deepspeed,
    check_distributed_files,
    distributed_folders,
)
from bt_lightning.checkpoint_formats.tensor_file_checks import MayBeAllError, check_torch_file
from bt_lightning.checkpoint_formats.top_level_entries import field_of
from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_limits import MANIFEST

if TYPE_CHECKING:
    from bt_lightning.checkpoint_formats.folder_view import FolderView

TRAINER_STATE: Final = "trainer_state.json"
SENTINEL: Final = "checkpoint-is-incomplete.txt"
TRAINING_ARGS: Final = "training_args.bin"
_CHECKPOINT: Final = re.compile(r"checkpoint-(\d{1,15})")
_RNG: Final = re.compile(r"rng_state_(\d+)\.pth")
_RANDOM_STATES: Final = re.compile(r"random_states_(\d+)\.pkl")
_GLOBAL_STEP: Final = re.compile(rb'^  "global_step": (\d{1,15}),$', re.MULTILINE)
_EPOCH: Final = re.compile(rb'^  "epoch": (\d{1,9})(?:\.\d+)?,$', re.MULTILINE)
_HEAD_BYTES: Final = 65536
_MOST_EPOCHS: Final = 1e9
_BEFORE_STATE: Final = frozenset(
    {TRAINING_ARGS, "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt"}
    | {"rng_state.pth", "rng_state_0.pth"}
)
"""What the process that writes `trainer_state.json` writes before it, beside weights."""


def is_trainer_folder(name: str) -> bool:
    """Whether the HF Trainer names a checkpoint so."""
    return _CHECKPOINT.fullmatch(name) is not None


def check_trainer(view: FolderView) -> Whole:
    """A `checkpoint-N` of the HF Trainer, with all that lies in it.

    Raises:
        CheckpointCorruptError: something is missing.
    """
    if SENTINEL in view.files:
        msg = f"{SENTINEL} says that the Trainer has not finished it"
        raise CheckpointCorruptError(msg)
    if TRAINER_STATE not in view.files:
        msg = f"{TRAINER_STATE} is missing, which the Trainer writes last"
        first = TRAINING_ARGS in view.files or any(is_weights(path) for path in view.files)
        raise (CheckpointCorruptError if first else MayBeAllError)(msg)  # of another node's ranks
    step, epoch, metrics = trainer_state(view)
    _check_order(view)
    sharded = distributed_folders(view)
    for folder in sharded:
        check_distributed_files(view, folder)
    is_deepspeed = LATEST in view.files
    if is_deepspeed:
        check_deepspeed(view)
    if not check_tensor_files(view, view.files) and not sharded and not is_deepspeed:
        msg = "it has no weights"
        raise CheckpointCorruptError(msg)
    _check_ranks(view, _RNG, "rng_state_{}.pth")
    check_json_files(view)
    has_optimizer = is_deepspeed or any(
        "optimizer" in path.split("/")[0] and not path.endswith(".json") for path in view.files
    )
    known = TRAINING_ARGS in view.files
    arguments = check_torch_file(view, TRAINING_ARGS).value if known else None
    _check_called_for(view, arguments, has_optimizer=has_optimizer)
    return Whole(
        format="hf-trainer",
        files=tuple(sorted(view.files)),
        step=step,
        epoch=epoch,
        metrics=metrics,
        rotated=field_of(arguments, "save_total_limit", "unknown") is not None,
        resumable=has_optimizer,
        **model_facts(view),
    )


def _check_called_for(view: FolderView, saved: Any, *, has_optimizer: bool) -> None:
    """Raise if what the Trainer's arguments call for is missing: the folder is being deleted."""
    has_generators = any(path.startswith("rng_state") for path in view.files)
    only_model = not has_optimizer and not has_generators and "scheduler.pt" not in view.files
    if only_model and TRAINING_ARGS not in view.files:
        msg = f"{TRAINING_ARGS} is missing, which belongs to it"
        raise CheckpointCorruptError(msg)
    only_model = only_model and field_of(saved, "save_only_model") is not False
    if not only_model and not (has_optimizer and has_generators):
        what = "the state of the optimizer" if not has_optimizer else "the state of the generators"
        msg = f"{what} is missing, which belongs to it"
        raise CheckpointCorruptError(msg)


def check_accelerate(view: FolderView) -> Whole:
    """A folder of accelerate's `save_state`, whose `random_states_<rank>.pkl` come last.

    Raises:
        CheckpointCorruptError: something is missing.
    """
    _check_ranks(view, _RANDOM_STATES, "random_states_{}.pkl", least=1)
    sharded = distributed_folders(view)
    for folder in sharded:
        check_distributed_files(view, folder)
    if not check_tensor_files(view, view.files) and not sharded:
        msg = "it has no weights"
        raise CheckpointCorruptError(msg)
    optimizers = [p for p in view.files if p.startswith("optimizer")]
    return Whole(
        format="accelerate",
        files=tuple(sorted(view.files)),
        step=step_of_name(view.name),
        epoch=epoch_of_name(view.name),
        resumable=bool(optimizers),
        **model_facts(view),
    )


def _check_ranks(view: FolderView, pattern: re.Pattern[str], name: str, least: int = 0) -> None:
    """Each rank writes one such file; the names are numbered only if there are several."""
    ranks = {int(m[1]) for path in view.files if (m := pattern.fullmatch(path))}
    expected = max(ranks, default=least - 1) + 1
    if pattern is _RNG and ranks:
        expected = max(expected, 2)
    missing = [name.format(rank) for rank in range(expected) if rank not in ranks]
    if missing:
        msg = f"{missing[0]} is missing, which its rank writes"
        raise CheckpointCorruptError(msg)


def _check_order(view: FolderView) -> None:
    """Raise if a file is of a later save than `trainer_state.json`: one that was broken off."""
    if view.times is None:
        return
    last = view.times[TRAINER_STATE]
    for path, at in view.times.items():
        if (path in _BEFORE_STATE or is_weights(path)) and at > last:
            msg = (
                f"{path} is newer than {TRAINER_STATE}, which the Trainer writes last: a save over"
                " an older one was broken off"
            )
            raise CheckpointCorruptError(msg)


def trainer_state(view: FolderView) -> tuple[int, int, dict[str, float]]:
    """Step, epoch and metrics of `trainer_state.json`."""
    if view.files[TRAINER_STATE] > MANIFEST.size:
        return _large_trainer_state(view)
    state = view.read_object(TRAINER_STATE, MANIFEST)
    step, epoch = state.get("global_step"), state.get("epoch")
    if type(step) is not int or step < 0:
        msg = f"{TRAINER_STATE} has no global_step"
        raise CheckpointCorruptError(msg)
    metrics: dict[str, float] = {}
    history = state.get("log_history")
    for entry in history if isinstance(history, list) else []:
        if isinstance(entry, dict) and entry.get("step") == step:
            metrics |= {k: float(v) for k, v in entry.items() if type(v) in {int, float}}
    metrics = {k: v for k, v in metrics.items() if k not in {"step", "epoch"}}
    known = isinstance(epoch, int | float) and 0 <= epoch < _MOST_EPOCHS
    return step, int(epoch or 0) if known else 0, metrics


def _large_trainer_state(view: FolderView) -> tuple[int, int, dict[str, float]]:
    """Of a long run: its keys are sorted, so the step stands before the long history."""
    size = view.files[TRAINER_STATE]
    head = view.read(TRAINER_STATE, 0, _HEAD_BYTES)
    tail = view.read(TRAINER_STATE, size - 4, 4)
    step, epoch = _GLOBAL_STEP.search(head), _EPOCH.search(head)
    if step is None or tail.rstrip()[-1:] != b"}":
        msg = f"{TRAINER_STATE} is not whole"
        raise CheckpointCorruptError(msg)
    return int(step[1]), int(epoch[1]) if epoch else 0, {}
