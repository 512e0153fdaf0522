"""What a run starts from, and what it says when it cannot."""

from __future__ import annotations

import logging
import re
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bt_lightning import (
    BTLightning,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    InvalidSettingError,
)

if TYPE_CHECKING:
    from types import ModuleType

moved = pytest.mark.filterwarnings("ignore:The dirpath has changed")
"""Lightning says so when what it resumes from lies in another directory."""
EVERY_3 = {"every_n_train_steps": 3, "save_top_k": -1}


@pytest.fixture
def interrupted(runs: ModuleType) -> Any:
    """Leaves checkpoints of steps 3 and 6 under a directory."""

    def make(root: Path, **options: Any) -> Any:
        run = runs.fit(root, make=partial(runs.Net, 7), save=EVERY_3, **options)
        assert run.stopped
        return run

    return make


def flip(path: Path) -> None:
    """Change one byte in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def at_start(runs: ModuleType) -> Any:
    """A callback that notes the weights with which training starts."""
    from lightning.pytorch.callbacks import Callback

    class AtStart(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.weights = runs.digest(pl_module.state_dict())

    return AtStart()


def test_require_without_a_checkpoint_fails_and_says_where_it_looked(
    runs: ModuleType, tmp_path: Path
) -> None:
    root, load = tmp_path / "root", tmp_path / "load"
    with pytest.raises(CheckpointNotFoundError) as caught:
        runs.fit(root, bt={"resume": "require", "load_dir": load})
    message = str(caught.value)
    assert f"no usable checkpoint in {root}, {load}. Considered:" in message
    assert f"{load}: refused, no such directory" in message


def test_require_goes_on_from_what_there_is(
    runs: ModuleType, interrupted: Any, tmp_path: Path
) -> None:
    interrupted(tmp_path)
    assert runs.fit(tmp_path, save=EVERY_3, bt={"resume": "require"}).first_step == 6


def test_never_starts_fresh_beside_what_there_is(
    runs: ModuleType, interrupted: Any, names: Any, tmp_path: Path
) -> None:
    interrupted(tmp_path)
    run = runs.fit(tmp_path, save=EVERY_3, bt={"resume": "never"})
    assert run.first_step == 0
    assert {"checkpoint-3", "checkpoint-6", "checkpoint-24"} <= names(tmp_path)


@moved
@pytest.mark.parametrize("layout", ["job7/rank-0", "rank-0", "."])
def test_the_load_directory_is_read_in_each_of_its_layouts(
    runs: ModuleType,
    interrupted: Any,
    tmp_path: Path,
    environ: pytest.MonkeyPatch,
    layout: str,
) -> None:
    interrupted(tmp_path / "load" / layout)
    environ.setenv("BT_LOAD_CHECKPOINT_DIR", str(tmp_path / "load"))
    run = runs.fit(tmp_path / "root", save=EVERY_3)
    assert run.first_step == 6
    assert run.trainer.ckpt_path == str((tmp_path / "load" / layout / "checkpoint-6").resolve())


def test_a_checkpoint_of_another_node_is_not_taken(
    runs: ModuleType, interrupted: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(tmp_path / "load" / "job7" / "rank-1")
    with caplog.at_level(logging.WARNING, "bt_lightning"):
        run = runs.fit(tmp_path / "root", bt={"load_dir": tmp_path / "load"})
    assert run.first_step == 0
    assert "refused, it belongs to rank-1" in caplog.text


def test_own_checkpoints_come_before_loaded_ones(
    runs: ModuleType, interrupted: Any, tmp_path: Path
) -> None:
    """A job that was restarted goes on where it was, not where the job before it was."""
    runs.fit(tmp_path / "load", make=partial(runs.Net, 14), save=EVERY_3)
    interrupted(tmp_path / "root", bt={"load_dir": None})
    run = runs.fit(tmp_path / "root", save=EVERY_3, bt={"load_dir": tmp_path / "load"})
    assert run.first_step == 6


def test_a_stock_file_in_the_load_directory_is_resumed(runs: ModuleType, tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    stock = ModelCheckpoint(tmp_path / "load", filename="{step}", **EVERY_3)
    runs.fit(tmp_path / "other", callbacks=[stock], make=partial(runs.Net, 7))
    files = [path.name for path in (tmp_path / "load").iterdir()]
    assert sorted(files) == ["step=3.ckpt", "step=6.ckpt"]
    with pytest.warns(UserWarning, match="The dirpath has changed"):
        run = runs.fit(tmp_path / "root", save=EVERY_3, bt={"load_dir": tmp_path / "load"})
    assert run.first_step == 6
    assert run.trainer.current_epoch == 3


def test_weights_starts_at_step_0_with_the_loaded_weights(
    runs: ModuleType, interrupted: Any, tmp_path: Path
) -> None:
    interrupted(tmp_path / "load")
    loaded = runs.Net.load_from_checkpoint(tmp_path / "load" / "checkpoint-6")
    noted = at_start(runs)
    options = {"save": EVERY_3, "bt": {"load_dir": tmp_path / "load", "resume": "weights"}}
    run = runs.fit(tmp_path / "root", noted, make=partial(runs.Net, 4), **options)
    assert run.first_step == 0
    assert noted.weights == runs.digest(loaded.state_dict())
    again = runs.fit(tmp_path / "root", noted, **options)
    assert again.first_step == 3, "an interrupted warm start goes on as any other run"


def test_weights_takes_a_checkpoint_that_holds_nothing_else(
    runs: ModuleType, tmp_path: Path
) -> None:
    save = {"every_n_train_steps": 8, "save_weights_only": True}
    runs.fit(tmp_path / "load", save=save, max_epochs=1)
    noted = at_start(runs)
    bt = {"load_dir": tmp_path / "load", "resume": "weights"}
    run = runs.fit(tmp_path / "root", noted, save=EVERY_3, bt=bt)
    assert run.first_step == 0
    loaded = runs.Net.load_from_checkpoint(tmp_path / "load" / "checkpoint-8")
    assert noted.weights == runs.digest(loaded.state_dict())


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "trainer.json"])
def test_a_damaged_newest_checkpoint_is_named_and_the_older_one_taken(
    runs: ModuleType, interrupted: Any, tmp_path: Path, caplog: Any, file: str
) -> None:
    interrupted(tmp_path)
    flip(tmp_path / "checkpoint-6" / file)
    with caplog.at_level(logging.WARNING, "bt_lightning"):
        run = runs.fit(tmp_path, save=EVERY_3)
    assert run.first_step == 3
    assert f"{tmp_path / 'checkpoint-6'}: refused" in caplog.text
    assert f"the bytes of {file} are not those that were saved" in caplog.text
    assert (tmp_path / "checkpoint-6" / file).exists(), "what is damaged stays for its owner"


def test_what_it_starts_from_is_read_once(runs: ModuleType, tmp_path: Path) -> None:
    read: dict[str, int] = {}

    class Counting(runs.Net):
        def setup(self, stage: str) -> None:
            read["setup"] = read_bytes()  # behind the choice

        def on_fit_start(self) -> None:
            read["restored"] = read_bytes()

    options = {"save": {"every_n_train_steps": 1}, "max_steps": 3}
    assert runs.fit(tmp_path, make=partial(Counting, 2, width=200_000), **options).stopped
    size = sum(file.stat().st_size for file in (tmp_path / "checkpoint-2").iterdir())
    before = read_bytes()
    assert runs.fit(tmp_path, make=partial(Counting, width=200_000), **options).first_step == 2
    assert size <= read["restored"] - before < 1.2 * size
    assert read["restored"] - read["setup"] < 0.1 * size


def read_bytes() -> int:
    """What this process has read by system calls."""
    lines = Path("/proc/self/io").read_text("ascii").splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def test_require_with_nothing_but_damage_lists_each_checkpoint(
    runs: ModuleType, interrupted: Any, tmp_path: Path
) -> None:
    interrupted(tmp_path)
    flip(tmp_path / "checkpoint-6" / "model.safetensors")
    flip(tmp_path / "checkpoint-3" / "bt_manifest.json")
    with pytest.raises(CheckpointNotFoundError) as caught:
        runs.fit(tmp_path, bt={"resume": "require"})
    message = str(caught.value)
    assert f"{tmp_path / 'checkpoint-6'}: refused, the checkpoint" in message
    assert f"{tmp_path / 'checkpoint-3'}: refused, the manifest" in message


def test_weights_of_another_shape_are_listed(
    runs: ModuleType, interrupted: Any, tmp_path: Path
) -> None:
    interrupted(tmp_path)
    with pytest.raises(CheckpointMismatchError) as caught:
        runs.fit(tmp_path, make=partial(runs.Net, width=8), save=EVERY_3)
    message = str(caught.value)
    assert (
        f"the checkpoint {tmp_path / 'checkpoint-6'} holds the weights of another model" in message
    )
    assert "net.0.weight: saved [16, 8], the model has [8, 8]" in message
    assert "give BT_CHECKPOINT_DIR another directory" in message


@pytest.fixture
def taller(runs: ModuleType) -> Any:
    """A module with one buffer more than `Net`, and one with a layer more."""
    import torch

    class WithBuffer(runs.Net):
        def __init__(self, *args: Any, strict: bool = True, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.register_buffer("extra", torch.zeros(3))
            self.strict_loading = strict

    return WithBuffer


def test_names_that_differ_are_listed(
    runs: ModuleType, interrupted: Any, taller: Any, tmp_path: Path
) -> None:
    interrupted(tmp_path)
    with pytest.raises(CheckpointMismatchError, match=r"missing in the checkpoint \(1\): extra"):
        runs.fit(tmp_path, make=taller, save=EVERY_3)


def test_names_that_the_model_does_not_know_are_listed(
    runs: ModuleType, taller: Any, tmp_path: Path
) -> None:
    runs.fit(tmp_path, make=partial(taller, 7), save=EVERY_3)
    with pytest.raises(CheckpointMismatchError, match=r"unknown to the model \(1\): extra"):
        runs.fit(tmp_path, save=EVERY_3)


@pytest.mark.parametrize("how", ["argument", "module"])
def test_strict_false_loads_what_has_the_same_name(
    runs: ModuleType, interrupted: Any, taller: Any, tmp_path: Path, how: str
) -> None:
    interrupted(tmp_path)
    make = partial(taller, strict=how != "module")
    bt = {"strict": False} if how == "argument" else {}
    assert runs.fit(tmp_path, make=make, save=EVERY_3, bt=bt).first_step == 6


def test_strict_true_wins_over_the_module(
    runs: ModuleType, interrupted: Any, taller: Any, tmp_path: Path
) -> None:
    interrupted(tmp_path)
    with pytest.raises(CheckpointMismatchError, match="extra"):
        runs.fit(tmp_path, make=partial(taller, strict=False), save=EVERY_3, bt={"strict": True})


DDP = """
import sys
import plugin_runs as runs
from bt_lightning import BTLightning, CheckpointError

root, nowhere = sys.argv[1:]
for place, resume, width in ((root, "auto", 8), (nowhere, "require", 16)):
    callback = BTLightning(dir=place, resume=resume)
    trainer = runs.trainer(place, callback, strategy="ddp", devices=2)
    try:
        trainer.fit(runs.Net(width=width), runs.loader())
    except CheckpointError as error:
        kind = type(error).__name__
        sys.stdout.write(f"rank {trainer.global_rank}: {kind}: {error.message!r}\\n")
        sys.stdout.flush()
"""


@pytest.mark.timeout(120)
def test_every_rank_raises_the_error_and_none_hangs(
    scripts: Any, interrupted: Any, tmp_path: Path
) -> None:
    """First a model of another shape, then nothing to resume from where it was required."""
    root = tmp_path / "root"
    interrupted(root)
    done = scripts.run(DDP, root, tmp_path / "nowhere")
    for rank in (0, 1):
        assert f"rank {rank}: CheckpointMismatchError: 'the checkpoint" in done.out, str(done)
        wanted = f"rank {rank}: CheckpointNotFoundError: \"resume='require', and no usable"
        assert wanted in done.out, str(done)


def test_resume_path_names_what_a_run_would_resume_from(
    interrupted: Any, tmp_path: Path, environ: pytest.MonkeyPatch
) -> None:
    from bt_lightning import resume_path

    assert resume_path() is None
    interrupted(tmp_path / "load")
    environ.setenv("BT_LOAD_CHECKPOINT_DIR", str(tmp_path / "load"))
    assert resume_path() == str(tmp_path / "load" / "checkpoint-6")
    environ.setenv("BT_CHECKPOINT_DIR", str(tmp_path / "load"))
    flip(tmp_path / "load" / "checkpoint-6" / "trainer.json")
    assert resume_path() == str(tmp_path / "load" / "checkpoint-3")


def test_the_explicit_path_of_fit_is_checked_as_well(
    runs: ModuleType, interrupted: Any, tmp_path: Path
) -> None:
    interrupted(tmp_path)
    trainer = runs.trainer(tmp_path, BTLightning(dir=tmp_path))
    with pytest.raises(CheckpointMismatchError, match="checkpoint-3 holds the weights of another"):
        trainer.fit(runs.Net(width=8), runs.loader(), ckpt_path=str(tmp_path / "checkpoint-3"))


def test_fewer_epochs_than_the_directory_holds_are_refused_with_a_way_out(
    runs: ModuleType, tmp_path: Path
) -> None:
    runs.fit(tmp_path, max_epochs=3)
    said = r"max_epochs is 1, .*2 epochs behind it.*'never'"
    with pytest.raises(InvalidSettingError, match=said):
        runs.fit(tmp_path, max_epochs=1)
    assert runs.fit(tmp_path, max_epochs=1, bt={"resume": "never"}).first_step == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_epochs": 2}, "max_epochs is 2, and .* has 3 epochs behind it"),
        ({"max_steps": 20, "max_epochs": -1}, "max_steps is 20, and .* is of step 24"),
    ],
)
def test_less_training_than_the_directory_holds_is_said_to_leave_nothing_to_do(
    runs: ModuleType,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    options: dict[str, int],
    text: str,
) -> None:
    runs.fit(tmp_path, max_epochs=3)
    assert runs.fit(tmp_path, **options).module.steps == []
    assert re.search(f"nothing is left to train: {text}.*resume='never'", caplog.text)


def test_a_model_checkpoint_goes_on_with_its_score_and_its_last_save(
    runs: ModuleType, names: Any, tmp_path: Path
) -> None:
    """One that takes itself for one that has saved nothing writes another `last` at the end."""

    class Worse(runs.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.log("worse", float(trainer.global_step))

    save = {"monitor": "worse", "save_top_k": 1, "save_last": True}
    right = runs.fit(tmp_path / "right", Worse(), save=save)
    assert runs.fit(tmp_path / "run", Worse(), save=save, make=partial(runs.Net, 13)).stopped
    again = runs.fit(tmp_path / "run", Worse(), save=save)
    assert again.first_step == 8
    assert names(tmp_path / "run") == names(tmp_path / "right")
    savers = [run.trainer.checkpoint_callback for run in (again, right)]
    assert savers[0].current_score == savers[1].current_score == 8


def test_an_exact_resume_inside_an_epoch_is_not_called_unreliable(
    runs: ModuleType, interrupted: Any, tmp_path: Path
) -> None:
    interrupted(tmp_path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        filters = [*warnings.filters]
        assert runs.fit(tmp_path, save=EVERY_3).first_step == 6
        ours = [each for each in warnings.filters if each not in filters]
    assert not [each for each in said if "not resumable" in str(each.message)]
    assert not [each for each in ours if each[1] and "resuming" in each[1].pattern]
