"""Strategies that write around the CheckpointIO are refused; those that hand on are not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from bt_lightning import InvalidSettingError
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType


def around() -> Any:
    import torch
    from lightning.pytorch.strategies import SingleDeviceStrategy

    class Around(SingleDeviceStrategy):
        def save_checkpoint(self, checkpoint: Any, filepath: Any, storage_options: Any = None):
            torch.save(checkpoint, filepath)

        def load_checkpoint(self, path: Any, **options: Any) -> Any:
            return torch.load(path, **options)

    return Around("cpu")


def reading() -> Any:
    import torch
    from lightning.pytorch.strategies import SingleDeviceStrategy

    class Reading(SingleDeviceStrategy):
        def load_checkpoint(self, path: Any, **options: Any) -> Any:
            return torch.load(path, **options)

    return Reading("cpu")


def counting() -> Any:
    from lightning.pytorch.strategies import SingleDeviceStrategy

    class Counting(SingleDeviceStrategy):
        saves = 0

        def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            self.saves += 1
            super().save_checkpoint(*args, **kwargs)

    return Counting("cpu")


def by_name() -> Any:
    from lightning.pytorch.strategies import SingleDeviceStrategy

    class ByName(SingleDeviceStrategy):
        def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            SingleDeviceStrategy.save_checkpoint(self, *args, **kwargs)

    return ByName("cpu")


def by_helper() -> Any:
    from lightning.pytorch.strategies import SingleDeviceStrategy

    class ByHelper(SingleDeviceStrategy):
        def save_checkpoint(self, checkpoint: Any, filepath: Any, storage_options: Any = None):
            self._write(checkpoint, filepath)

        def _write(self, checkpoint: Any, filepath: Any) -> None:
            if self.is_global_zero:
                self.checkpoint_io.save_checkpoint(checkpoint, filepath)

    return ByHelper("cpu")


@pytest.mark.parametrize(("make", "hook"), [(around, "save"), (reading, "load")])
def test_a_strategy_that_writes_or_reads_around_the_io_is_refused_at_the_start(
    runs: ModuleType, tmp_path: Path, make: Callable[[], Any], hook: str
) -> None:
    with pytest.raises(InvalidSettingError, match=rf"{hook}_checkpoint calls neither super\(\)"):
        runs.fit(tmp_path, strategy=make())


@pytest.mark.parametrize("make", [counting, by_name, by_helper])
def test_a_strategy_that_hands_on_is_as_good_as_its_base(
    runs: ModuleType, tmp_path: Path, make: Callable[[], Any]
) -> None:
    save = {"every_n_train_steps": 4}
    runs.fit(tmp_path, strategy=make(), save=save, max_epochs=1)
    resumed = runs.fit(tmp_path, strategy=make(), save=save, max_epochs=2)
    assert resumed.first_step == 8
    found = {one.manifest.step for one in list_committed(tmp_path.resolve())[0]}
    assert found == {8, 16}  # the first is what the second run resumed from


@pytest.mark.parametrize("beside", [False, True])
def test_saves_of_weights_alone_are_named_at_the_start_unless_there_are_others(
    runs: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture, beside: bool
) -> None:
    light = {"save_weights_only": True, "every_n_train_steps": 4, "save_top_k": -1}
    more = [runs.ModelCheckpoint(filename="whole-{step}")] if beside else []
    runs.fit(tmp_path, *more, save=light, max_epochs=1, bt={"save_at_end": False})
    assert ("no restart can go on from what they save" in caplog.text) != beside
    found = {one.manifest.resumable for one in list_committed(tmp_path.resolve())[0]}
    assert found == ({True, False} if beside else {False})
