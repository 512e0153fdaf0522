"""Saves hold what the hooks of the module, and of callbacks behind ours, did at that boundary."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint

from bt_lightning import BTCheckpointIO, BTLightning
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

OLD = tuple(map(int, version("lightning").split(".")[:2])) < (2, 6)
needs_26 = pytest.mark.skipif(OLD, reason="Lightning before 2.6 is not exact inside an epoch")
HOOKS = (
    "on_train_batch_end",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_validation_end",
    "on_train_epoch_end",
)
STATEFUL = {"loader_options": {"stateful": True}}


def change(net: torch.nn.Module) -> None:
    """Draw, and move a weight, a buffer and a counter."""
    with torch.no_grad():
        net[0].bias += 1e-3 * torch.rand(())
        net[1].running_mean += 1e-2
        net[1].num_batches_tracked += 1


class Changes(Checkpoint):
    """A callback of the user's that comes behind ours: Lightning puts these last."""

    def __init__(self) -> None:
        self.calls = 0
        for hook in HOOKS:
            setattr(self, hook, self._act)

    def _act(self, trainer: Any, module: Any, *args: Any) -> None:
        if not trainer.sanity_checking:
            change(module.net)
            self.calls += 1

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.calls = state_dict["calls"]


@pytest.fixture
def changing(runs: ModuleType) -> Any:
    """A module that changes itself in each of its hooks, and has an average of its weights."""

    class Changing(runs.Net):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.register_buffer("average", torch.zeros(16))

        def _act(self, *args: Any) -> None:
            if not self.trainer.sanity_checking:
                change(self.net)
                self.average.lerp_(self.net[0].bias.detach(), 0.1)

        def on_validation_model_train(self) -> None:
            self.train()
            self._act()

    for hook in HOOKS:
        setattr(Changing, hook, Changing._act)
    return Changing


SAVES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "steps": ({"every_n_train_steps": 1, "save_top_k": -1}, {}),
    "monitor": ({"every_n_train_steps": 1, "monitor": "val", "save_top_k": 2}, {}),
    "last": ({"monitor": "val", "save_top_k": 1, "save_last": True}, {}),
    "link": ({"every_n_train_steps": 2, "save_top_k": 1, "save_last": "link"}, {}),
    "epochs": ({"every_n_epochs": 1, "save_top_k": -1, "save_on_train_epoch_end": True}, {}),
    "interval": ({"every_n_epochs": 99}, {"interval": 1e-6}),
}


@needs_26
@pytest.mark.parametrize("every", [None, 4], ids=["epoch", "half"])
@pytest.mark.parametrize("save", SAVES)
def test_what_later_hooks_change_is_in_the_save_of_their_boundary(
    runs: ModuleType, names: Any, changing: Any, tmp_path: Path, save: str, every: int | None
) -> None:
    saver, bt = SAVES[save]
    options = {"save": saver, "bt": bt, "val_check_interval": every, **STATEFUL}
    reference = runs.fit(tmp_path / "reference", Changes(), make=changing, **options)
    for seed, stop_at in enumerate((9, 13, 17)):
        make = partial(changing, stop_at)
        part = runs.fit(tmp_path / "run", Changes(), make=make, seed=7 * seed + 1, **options)
        assert part.stopped
    resumed = runs.fit(tmp_path / "run", Changes(), make=changing, seed=99, **options)
    assert resumed.first_step > 0
    assert resumed.outcome == reference.outcome
    calls = [run.trainer.callbacks[-1].calls for run in (reference, resumed)]
    assert calls[0] == calls[1]
    if save != "interval":
        # what it resumed from stays until the next run; and Lightning saves a `last` at the end of
        # a process that has saved none, which stands in for ours
        aside = {f"checkpoint-{resumed.first_step}", "final-24"}
        assert names(tmp_path / "run") - aside == names(tmp_path / "reference") - aside


class Notes(Callback):
    """Keeps the state that each step ends with: that in which the next batch begins."""

    def __init__(self, digest: Any) -> None:
        self.digest, self.states = digest, {}

    def on_train_batch_start(self, trainer: Any, module: Any, *args: Any) -> None:
        self.states[trainer.global_step] = self.digest(module.state_dict())

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self.on_train_batch_start(trainer, module)


@pytest.mark.parametrize("save", ["steps", "interval"])
def test_a_save_has_the_state_in_which_the_next_batch_begins(
    runs: ModuleType, changing: Any, tmp_path: Path, save: str
) -> None:
    """Behind batches, behind validations inside an epoch, and at its end."""
    saver, bt = SAVES[save]
    notes = Notes(runs.digest)
    options = {"save": saver, "bt": bt, "val_check_interval": 4, "max_epochs": 2}
    runs.fit(tmp_path, Changes(), notes, make=changing, **options)
    found = list_committed(tmp_path.resolve())[0]
    assert {one.manifest.step for one in found} >= ({*range(1, 17)} if save == "steps" else set())
    assert found
    for one in found:
        path = tmp_path / one.manifest.checkpoint_id
        state = BTCheckpointIO().load_checkpoint(path)["state_dict"]
        assert runs.digest(state) == notes.states[one.manifest.step], path


def seen(runs: ModuleType, root: Path, *ours: Any) -> tuple[list[Any], set[str]]:
    """What a module's hooks see of three `ModelCheckpoint`s, two of one name."""

    class Looking(runs.Net):
        def _look(self, *savers: Any) -> None:
            for saver in savers:
                paths = (saver.best_model_path, saver.last_model_path, *saver.best_k_models)
                names = [path.rpartition("/")[2].partition(".ckpt")[0] for path in paths]
                found.append((self.trainer.global_step, names, saver.current_score))

        def on_train_batch_end(self, *args: Any) -> None:
            if self.trainer.global_step % 4:  # others wait for the validation
                self._look(*savers)

        def on_validation_end(self) -> None:
            if self.trainer.global_step % 8:  # others wait for the end of the epoch
                self._look(savers[1])

    found: list[Any] = []
    folder = str(root / "saved")
    common: dict[str, Any] = {"dirpath": folder, "filename": "{step}"}
    savers = [
        ModelCheckpoint(**common, every_n_train_steps=1, monitor="loss", save_top_k=2),
        ModelCheckpoint(
            folder, "best-{step}", every_n_epochs=1, monitor="val", save_last=True, mode="max"
        ),
        ModelCheckpoint(**common, every_n_train_steps=3, save_top_k=1, save_last="link"),
    ]
    savers[2].CHECKPOINT_NAME_LAST = "linked"
    runs.fit(root, callbacks=[*ours, *savers], make=Looking, max_epochs=2, val_check_interval=4)
    return found, {path.name.partition(".ckpt")[0] for path in (root / "saved").iterdir()}


def test_the_hooks_see_of_the_savers_what_they_see_with_plain_lightning(
    runs: ModuleType, tmp_path: Path
) -> None:
    wanted, files = seen(runs, tmp_path / "plain")
    found, kept = seen(runs, tmp_path / "ours", BTLightning(dir=tmp_path / "ours"))
    assert found == wanted
    assert {name for name in kept if not name.startswith(".")} == files


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_train_epoch_end"])
def test_a_hook_that_fails_does_not_take_the_save_before_it_with_it(
    runs: ModuleType, tmp_path: Path, hook: str
) -> None:
    """Plain Lightning has saved by then."""

    class Failing(runs.Net):
        def _fail(self, *args: Any) -> None:
            if self.trainer.global_step == 8:
                runs.stop()

    setattr(Failing, hook, Failing._fail)
    save = {"every_n_train_steps": 1, "save_top_k": 1}
    assert runs.fit(tmp_path, make=Failing, save=save, limit_val_batches=0).stopped
    steps = [one.manifest.step for one in list_committed(tmp_path.resolve())[0]]
    assert steps == [8]


def test_a_subclass_that_saves_other_weights_saves_them(runs: ModuleType, tmp_path: Path) -> None:
    """Its hook swaps them in and back; a save behind the hook would be of others."""

    class Zeros(ModelCheckpoint):
        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            before = module.net[3].bias.detach().clone()
            torch.nn.init.zeros_(module.net[3].bias)
            super().on_train_batch_end(trainer, module, *args)
            with torch.no_grad():
                module.net[3].bias.copy_(before)

    saver = Zeros(every_n_train_steps=4, save_top_k=-1)
    runs.fit(tmp_path, callbacks=[BTLightning(dir=tmp_path, snapshot="eager"), saver], max_epochs=1)
    state = BTCheckpointIO().load_checkpoint(tmp_path / "checkpoint-4")["state_dict"]
    assert not state["net.3.bias"].any()


def test_no_interval_save_falls_into_an_accumulation_window(
    runs: ModuleType, tmp_path: Path
) -> None:
    """Nor before a step is timed, by which the time until the next exact state is estimated."""

    class Batches(Callback):
        def __init__(self) -> None:
            self.saved: list[int] = []

        def on_save_checkpoint(self, trainer: Any, *_: Any) -> None:
            self.saved.append(trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    batches, bt = Batches(), BTLightning(dir=tmp_path, interval=1e-6)
    options = {"enable_checkpointing": False, "accumulate_grad_batches": 3, "max_epochs": 3}
    runs.fit(tmp_path, callbacks=[batches, bt], **options)
    assert batches.saved
    assert set(batches.saved) <= {3, 6, 8}
