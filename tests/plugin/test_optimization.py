"""Ways to optimize that Lightning offers: each snapshot beside them is of one step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning as L
import pytest
import torch

from bt_lightning.localdir.event_log import read_events

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType


def fit_and_check(runs: ModuleType, root: Path, make: Any, *more: Any, **options: Any) -> Any:
    """Train with lazy snapshots, each of which begins to be copied when somebody waits for it."""
    wanted = runs.Wanted()
    bt = {"snapshot": "lazy"}
    run = runs.fit(root, *more, wanted, make=make, bt=bt, **{"max_epochs": 2, **options})
    wanted.check(root)
    saves = [event for event in read_events(root) if event["event"] == "save"]
    assert {event["snapshot"] for event in saves} == {"lazy"}
    return run


@pytest.mark.usefixtures("late")
def test_two_optimizers_that_are_toggled_as_a_gan_does(runs: ModuleType, tmp_path: Path) -> None:
    """What is toggled off has `requires_grad` False for a while: also when it is saved."""

    class Toggling(runs.TwoOptimizers):
        def training_step(self, batch: torch.Tensor, index: int) -> None:
            self.note(index)
            for optimizer in self.optimizers():
                self.toggle_optimizer(optimizer)
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                optimizer.step()
                self.trainer.save_checkpoint(tmp_path / f"checkpoint-{self.trainer.global_step}")
                self.untoggle_optimizer(optimizer)

    run = fit_and_check(runs, tmp_path, Toggling, save={"save_top_k": 0})
    assert run.trainer.global_step == 32
    assert all(weight.requires_grad for weight in run.module.parameters())


@pytest.mark.usefixtures("late")
def test_two_optimizers_of_which_one_steps_twice_before_the_other(
    runs: ModuleType, tmp_path: Path
) -> None:
    """A closure, then none, with a save between the two steps of one batch."""

    class Uneven(runs.TwoOptimizers):
        def training_step(self, batch: torch.Tensor, index: int) -> None:
            self.note(index)
            one, other = self.optimizers()

            def closure() -> torch.Tensor:
                one.zero_grad()
                loss = self.loss(batch)
                self.manual_backward(loss)
                return loss

            one.step(closure=closure)
            self.trainer.save_checkpoint(tmp_path / f"checkpoint-{self.trainer.global_step}")
            one.step(closure=closure)
            other.zero_grad()
            self.manual_backward(self.loss(batch))
            other.step()

    run = fit_and_check(runs, tmp_path, Uneven, save={"save_top_k": 0})
    assert run.trainer.global_step == 48


@pytest.mark.usefixtures("late")
def test_lbfgs_which_calls_its_closure_again_and_again(runs: ModuleType, tmp_path: Path) -> None:
    class Quadratic(runs.Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

    run = fit_and_check(runs, tmp_path, Quadratic, max_epochs=1)
    assert len(run.module.steps) > run.trainer.global_step, "the closure was called more than once"


@pytest.mark.usefixtures("late")
def test_lbfgs_by_hand(runs: ModuleType, tmp_path: Path) -> None:
    class ByHand(runs.Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: torch.Tensor, index: int) -> None:
            optimizer = self.optimizers()

            def closure() -> torch.Tensor:
                optimizer.zero_grad()
                loss = self.loss(batch)
                self.manual_backward(loss)
                return loss

            optimizer.step(closure=closure)

        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

    assert fit_and_check(runs, tmp_path, ByHand, max_epochs=1).trainer.global_step == 8


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("name", ["WeightAveraging", "EMAWeightAveraging"])
def test_averaged_weights_and_those_that_train_are_of_one_step(
    runs: ModuleType, tmp_path: Path, name: str
) -> None:
    """The averages are what is saved as `state_dict`; they change beside the optimizer."""
    averaging = getattr(L.pytorch.callbacks, name, None)
    if averaging is None:
        pytest.skip("this Lightning has none")
    fit_and_check(runs, tmp_path, runs.Net, averaging(), val_check_interval=4)


@pytest.mark.usefixtures("late")
def test_stochastic_weight_averaging_puts_its_average_in_place(
    runs: ModuleType, tmp_path: Path
) -> None:
    """It replaces weights and runs one epoch more, of one step, for the batch statistics."""
    averaging = L.pytorch.callbacks.StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1)
    run = fit_and_check(runs, tmp_path, runs.Net, averaging, max_epochs=3, val_check_interval=4)
    assert run.trainer.global_step == 25


class SwapForValidation(L.Callback):
    """Validates with an average of its own, kept and swapped in behind every counter of torch."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.average = [weight.detach().clone() for weight in pl_module.parameters()]
        self.swaps = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        for mean, weight in zip(self.average, pl_module.parameters(), strict=True):
            mean.lerp_(weight.detach(), 0.5)

    def swap(self, pl_module: Any) -> None:
        self.swaps += 1
        for mean, weight in zip(self.average, pl_module.parameters(), strict=True):
            mean.data, weight.data = weight.data, mean.data

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.swap(pl_module)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.swap(pl_module)


class CopyForValidation(SwapForValidation):
    """The same by copies into the weights' own memory."""

    def swap(self, pl_module: Any) -> None:
        self.swaps += 1
        for mean, weight in zip(self.average, pl_module.parameters(), strict=True):
            kept = weight.data.clone()
            weight.data.copy_(mean)
            mean.copy_(kept)


@pytest.mark.parametrize("kind", [SwapForValidation, CopyForValidation])
@pytest.mark.parametrize("save", [{"every_n_train_steps": 1}, {"monitor": "val"}])
def test_a_validation_that_swaps_weights_leaves_a_pending_save_whole(
    runs: ModuleType, tmp_path: Path, late: Any, kind: Any, save: dict[str, Any]
) -> None:
    """What is still to be copied when validation begins would be copied in the midst of it."""

    class CopyMeanwhile(runs.Net):
        def validation_step(self, batch: torch.Tensor, index: int) -> None:
            late()
            super().validation_step(batch, index)

    swapping = kind()
    options = {"val_check_interval": 2, "num_sanity_val_steps": 0}
    saving = {"save_top_k": -1, **save}
    fit_and_check(runs, tmp_path, CopyMeanwhile, swapping, save=saving, **options)
    assert swapping.swaps == 16


@pytest.mark.usefixtures("late")
def test_accumulated_gradients_with_saves_between_the_steps(
    runs: ModuleType, tmp_path: Path
) -> None:
    """Batches between two steps change batch statistics and gradients, and no weights."""

    class SaveEachBatch(L.Callback):
        saved = 0

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"checkpoint-{trainer.global_step}")
            self.saved += 1

    saving = SaveEachBatch()
    options = {"accumulate_grad_batches": 3, "save": {"save_top_k": 0}}
    run = fit_and_check(runs, tmp_path, runs.Net, saving, **options)
    assert run.trainer.global_step == 6  # 8 batches an epoch: steps after the 3rd, 6th and last
    assert saving.saved == 16


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("way", ["foreach", "fused"])
@pytest.mark.parametrize("kind", ["AdamW", "Adam", "SGD"])
def test_optimizers_that_change_all_weights_at_once(
    runs: ModuleType, tmp_path: Path, kind: str, way: str
) -> None:
    """Fused ones do not count their changes in `_version`: only the guard holds them back."""

    class Fast(runs.Net):
        def configure_optimizers(self) -> Any:
            more = {"momentum": 0.9} if kind == "SGD" else {}
            return getattr(torch.optim, kind)(self.parameters(), lr=1e-2, **{way: True}, **more)

    fit_and_check(runs, tmp_path, Fast)


@pytest.mark.parametrize("epoch", [200, 8], ids=["in_an_epoch", "at_its_end"])
def test_optimizers_that_step_past_lightning_are_named_since_nothing_is_saved(
    runs: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture, epoch: int
) -> None:
    """`use_pl_optimizer=False` gives the bare optimizer: Lightning counts none of its steps."""
    import torch

    class Past(runs.Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, index: int) -> None:
            optimizer = self.optimizers(use_pl_optimizer=False)
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    rows = torch.utils.data.DataLoader(runs.Numbers(length=2 * epoch), batch_size=2)
    trainer = runs.trainer(tmp_path, runs.BTLightning(dir=tmp_path), max_epochs=1)
    trainer.fit(Past(), rows, runs.validation())
    (told,) = [record.message for record in caplog.records if "no optimizer step" in record.message]
    assert told.startswith(f"{min(epoch, 50)} batches were trained")


def test_a_run_whose_optimizers_lightning_counts_is_told_nothing_of_steps(
    runs: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs.fit(tmp_path, max_epochs=1, accumulate_grad_batches=20)
    assert "no optimizer step" not in caplog.text
