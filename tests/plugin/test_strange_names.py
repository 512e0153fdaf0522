"""Names and plugins of the user's own, beside the callback."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from bt_lightning import BTLightning, InvalidSettingError

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType


@pytest.mark.parametrize(
    "choice",
    [
        {"filename": ".x"},
        {"filename": "../x"},
        {"filename": "../../x-{step}"},
        {"filename": "a/.hidden-{step}"},
        {"filename": ".{val}", "auto_insert_metric_name": False},
        {"dirpath": ".hidden"},
    ],
)
def test_a_name_that_is_no_checkpoints_is_refused_when_the_fit_starts(
    runs: ModuleType, tmp_path: Path, choice: dict[str, Any]
) -> None:
    """It would be a plain file, which no later start goes on from."""
    root = tmp_path / "ck"
    if "dirpath" in choice:
        choice = {"dirpath": root / choice["dirpath"]}
    with pytest.raises(InvalidSettingError, match=r"cannot be a checkpoint of .*begin with a dot"):
        runs.fit(root, save=choice)
    assert not list(root.glob("x*"))
    assert not list(tmp_path.glob("x*"))


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"filename": "a/b.{step}"}, "a/b.step=24"),
        ({"filename": "{loss:.0f}.x"}, "loss=.*.x"),
        ({"filename": "sub/../x"}, "x"),
        ({"filename": "..x", "dirpath": "elsewhere"}, ""),
    ],
)
def test_other_names_are_taken(
    runs: ModuleType, tmp_path: Path, names: Any, choice: dict[str, Any], expected: str
) -> None:
    root = tmp_path / "ck"
    if "dirpath" in choice:
        choice = {**choice, "dirpath": tmp_path / choice["dirpath"]}
    runs.fit(root, save=choice)
    if not expected:
        assert (tmp_path / "elsewhere" / "..x.ckpt").is_file()
        assert names(root) == {"final-24"}, "which Lightning saves elsewhere"
        return
    (name,) = names(root)
    assert name == expected or name.startswith("loss=")


class _Noting(TorchCheckpointIO):
    def __init__(self) -> None:
        self.saved = 0
        self.note = "first"
        self.root, self.session, self.ours = "their root", "their session", "theirs"

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.saved += 1
        super().save_checkpoint(*args, **kwargs)

    def report(self) -> str:
        return f"{self.saved} {self.note}"


def test_what_the_users_own_plugin_has_is_reached_and_set_through_the_strategy(
    runs: ModuleType, tmp_path: Path
) -> None:
    mine = _Noting()
    callbacks = [BTLightning(dir=tmp_path / "ck"), ModelCheckpoint(tmp_path / "elsewhere")]
    trainer = runs.fit(tmp_path, callbacks=callbacks, plugins=[mine]).trainer
    io = trainer.strategy.checkpoint_io
    assert io.saved == mine.saved == 3
    io.note = "second"
    assert io.report() == mine.report() == "3 second"
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = io.nothing_of_the_kind
    assert not hasattr(io, "saves")
    assert (io.root, io.session, io.ours) == ("their root", "their session", "theirs")
    assert copy.copy(io).report() == "3 second"
    io.weights_only = True
    assert not hasattr(mine, "weights_only")
    assert pickle.loads(pickle.dumps(mine)).note == "second"
