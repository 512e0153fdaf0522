"""What `torch.compile` made is saved lazily, whole, and by the names that Lightning would write."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch

from bt_lightning import BTCheckpointIO
from bt_lightning.localdir.event_log import read_events

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

EPOCH = {"every_n_train_steps": 8}


def _inner(runs: ModuleType, *args: Any) -> Any:
    """A compiled network in a plain LightningModule: its weights are `net._orig_mod.*`."""
    module = runs.Net(*args)
    module.net = torch.compile(module.net, backend="aot_eager")
    return module


def _in_place(runs: ModuleType, *args: Any) -> Any:
    module = runs.Net(*args)
    module.net.compile(backend="aot_eager")
    return module


def _whole(runs: ModuleType, *args: Any) -> Any:
    """A compiled LightningModule, of which the Trainer takes the inside."""

    class Traced(runs.Net):
        """Without logging, and without generators that are not torch's: neither can be traced."""

        note = torch.compiler.disable(runs.Net.note)

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            self.note(index)
            return (self.net(batch) - 1).pow(2).mean()

        def validation_step(self, batch: torch.Tensor, index: int) -> None:
            self.net(batch)

    return torch.compile(Traced(*args), backend="eager")


@pytest.fixture(params=[_inner, _in_place, _whole])
def compiled(runs: ModuleType, request: pytest.FixtureRequest) -> Any:
    """Makes a module; what one test compiled is nothing to the next."""
    torch._dynamo.reset()
    return partial(request.param, runs)


@pytest.mark.usefixtures("late")
def test_a_compiled_module_is_saved_lazily_and_each_save_is_of_one_step(
    runs: ModuleType, compiled: Callable[..., Any], tmp_path: Path
) -> None:
    wanted = runs.Wanted()
    runs.fit(tmp_path, wanted, make=compiled, bt={"snapshot": "lazy"}, max_epochs=1)
    assert set(wanted.states) == set(range(1, 9))
    wanted.check(tmp_path)
    saves = [event for event in read_events(tmp_path) if event["event"] == "save"]
    assert {event["snapshot"] for event in saves} == {"lazy"}


def test_a_compiled_module_resumes_bit_by_bit(
    runs: ModuleType, compiled: Callable[..., Any], tmp_path: Path
) -> None:
    whole = runs.fit(tmp_path / "whole", make=compiled, save=EPOCH)
    cut = runs.fit(tmp_path / "cut", make=partial(compiled, 11), save=EPOCH)
    assert cut.stopped
    again = runs.fit(tmp_path / "cut", make=compiled, save=EPOCH, seed=2)
    assert again.first_step == 8
    assert again.outcome == whole.outcome


def test_names_and_values_of_a_compiled_module_are_those_that_lightning_writes(
    runs: ModuleType, compiled: Callable[..., Any], tmp_path: Path
) -> None:
    ours = runs.fit(tmp_path / "ours", make=compiled, save=EPOCH, max_epochs=1)
    plain = tmp_path / "plain.ckpt"
    stock = runs.fit(tmp_path / "stock", make=compiled, callbacks=[], max_epochs=1)
    stock.trainer.save_checkpoint(plain)
    ours.trainer.save_checkpoint(tmp_path / "ours" / "end")
    found = BTCheckpointIO().load_checkpoint(tmp_path / "ours" / "end")
    wanted = torch.load(plain, weights_only=False)
    for part in ("state_dict", "optimizer_states"):
        assert runs.digest(found[part]) == runs.digest(wanted[part])  # names, order and bits
