"""Trainings of one process or several: `scenarios.py NAME JSON`; prints what it found as JSON."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny import digest, make_model, make_trainer
from tiny_sft import make_sft_trainer
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from bt_lightning.hf import BTTrainerCallback
from bt_lightning.localdir.list_and_verify_checkpoints import verify


class StopAt(TrainerCallback):
    """Ends the training at a step as a bug of the script does."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self._step:
            msg = "a bug"
            raise RuntimeError(msg)


class SignalAt(TrainerCallback):
    """Sends this rank a real signal at a moment of a training."""

    def __init__(self, moment: str, step: int) -> None:
        self._step = step
        setattr(self, moment, self._send)

    def _send(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self._step:
            self._step = -1
            os.kill(os.getpid(), signal.SIGTERM)


def outcome(trainer: Trainer) -> dict[str, Any]:
    return {
        "step": trainer.state.global_step,
        "digest": digest(trainer.model),
        "best": trainer.state.best_model_checkpoint,
        "output_dir": trainer.args.output_dir,
        "evaluated": [one["step"] for one in trainer.state.log_history if "eval_loss" in one],
    }


def whole(
    folder: str,
    steps: int = 8,
    ours: bool = True,
    told: tuple[str, int, int] | None = None,
    options: dict[str, Any] | None = None,
    adapter: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """A training; `told`: at this moment and step, this rank gets SIGTERM."""
    callbacks: list[TrainerCallback] = [BTTrainerCallback(**(options or {}))] if ours else []
    if told is not None and told[2] == int(os.environ.get("RANK", "0")):
        callbacks.append(SignalAt(*told[:2]))
    make = make_sft_trainer if adapter else make_trainer
    trainer = make(folder, steps, callbacks, **more)
    trainer.train()
    return outcome(trainer)


def broken(
    folder: str, steps: int = 8, at: int = 5, lose: str | None = None, **more: Any
) -> dict[str, Any]:
    """A training with a bug, and without it; between the two a folder is lost."""
    trainer = make_trainer(folder, steps, [BTTrainerCallback(), StopAt(at)], **more)
    try:
        trainer.train()
    except RuntimeError as error:
        assert str(error) == "a bug", error  # noqa: PT017
    if lose is not None:
        shutil.rmtree(lose)
    began = []

    class Began(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            began.append(state.global_step)

    _forget_fits()
    trainer = make_trainer(folder, steps, [BTTrainerCallback(), Began()], **more)
    trainer.train()
    return {**outcome(trainer), "began": began[0]}


def read_by_transformers(folder: str, steps: int, **more: Any) -> dict[str, Any]:
    """A Trainer without us goes on with what was saved with us; and the weights as they are."""
    newest = get_last_checkpoint(folder)
    model = type(make_model()).from_pretrained(newest)
    trainer = make_trainer(folder, steps, [], **more)
    trainer.train(resume_from_checkpoint=newest)
    return {**outcome(trainer), "newest": newest, "weights": digest(model)}


def two_in_a_row(folder: str) -> list[dict[str, Any]]:
    """A script that trains two models; each has checkpoints of its own."""
    found = []
    for rate in (1e-2, 1e-3):
        trainer = make_trainer(folder, 4, [BTTrainerCallback()], learning_rate=rate)
        trainer.train()
        found.append(outcome(trainer))
    return found


def error_of(folder: str, asked: Any = None, **options: Any) -> dict[str, str]:
    """The error of a training that cannot begin."""
    trainer = make_trainer(folder, 4, [BTTrainerCallback(**options)])
    try:
        trainer.train(resume_from_checkpoint=asked)
    except Exception as error:  # noqa: BLE001 - it is what is looked at
        return {"kind": type(error).__name__, "text": str(error)}
    return {}


def from_path(folder: str, path: str, steps: int = 8) -> dict[str, Any]:
    """A training that the script resumes from a folder that it names."""
    trainer = make_trainer(folder, steps, [BTTrainerCallback()])
    trainer.train(resume_from_checkpoint=path)
    return outcome(trainer)


def first_save(folder: str, **more: Any) -> dict[str, Any]:
    """A training: how many storages of its first save were laid out by which thread."""
    from bt_lightning.snapshot import state_pickle

    main, others, flat = [], [], state_pickle._flat
    here = threading.get_ident()

    def counted(*given: Any) -> torch.Tensor:
        (main if threading.get_ident() == here else others).append(1)
        return flat(*given)

    state_pickle._flat = counted
    callback = BTTrainerCallback()

    class WaitsForThat(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1:
                saver = callback._training._run.session.saves.saver
                saver._cache.early.result(timeout=60)

    make_trainer(folder, 4, [callback, WaitsForThat()], **more).train()
    return {"main": len(main), "others": len(others)}


class Writes(Trainer):
    """A Trainer that makes the folder itself, and writes to it behind its base, and beside it."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
        folder.mkdir(parents=True, exist_ok=True)
        super()._save_checkpoint(model, trial)
        (folder / "more").mkdir()
        (folder / "more" / "notes.txt").write_text("inside")
        torch.save({"large": torch.ones(1 << 19)}, folder / "large.pt")
        (folder.parent / "newest.txt").write_text(folder.name)


class Looks(TrainerCallback):
    """A callback of the script's: it reads each save at once, and changes weights behind it."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_save(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        verify(folder)
        self.seen.append(folder.name)
        for weight in model.parameters():
            weight.data.mul_(0.5)


def written_by_others(folder: str) -> dict[str, Any]:
    """A training by a subclass, beside a callback of the script's."""
    looks = Looks()
    make_trainer(folder, 4, [BTTrainerCallback(), looks], kind=Writes, width=256).train()
    weights = [
        load_file(Path(folder, name, "model.safetensors"))["model.norm.weight"].mean().item()
        for name in looks.seen
    ]
    return {"seen": looks.seen, "weights": weights}


def _forget_fits() -> None:
    """What a restart does not know either."""
    from bt_lightning.session.fit_selection import process_fits

    process_fits.clear()


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    name, given = sys.argv[1:]
    print(json.dumps(globals()[name](**json.loads(given))))
