"""What a script's user sees of us: at the start, at a resume, at the end, and when it is over."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys
import torch
import lightning as L
from lightning.pytorch.demos.boring_classes import BoringModel
from bt_lightning import BTLightning

class Model(BoringModel):
    def __init__(self, lr, token):
        super().__init__()
        self.save_hyperparameters()

    def training_step(self, batch, index):
        if self.global_step == int(os.environ.get("DIE_AT", "-1")):
            os.kill(os.getpid(), 9)
        return super().training_step(batch, index)

trainer = L.Trainer(
    max_steps=40,
    callbacks=[
        BTLightning(),
        L.pytorch.callbacks.ModelCheckpoint(
            every_n_train_steps=10, save_top_k=int(os.environ.get("KEEP", "1"))
        ),
    ],
    accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
    limit_val_batches=0,
)
trainer.fit(Model(float(sys.argv[1]), sys.argv[2]))
"""


@pytest.fixture
def run(tmp_path):
    """Runs the script; returns its exit status, and what we said on stderr."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)

    def start(*words: str, **environ: str) -> tuple[int, list[str]]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("BT_")}
        place = {
            "BT_CHECKPOINT_DIR": "ck",
            "BT_STORE_URL": (tmp_path / "store").as_uri(),
            "BT_TRAINING_JOB_ID": "j1",
        }
        log = tmp_path / "stderr"
        with log.open("w") as stderr:  # no pipe: the worker of a killed run would hold it open
            done = subprocess.run(
                [sys.executable, str(script), *words],
                stderr=stderr,
                timeout=240,
                check=False,
                cwd=tmp_path,
                env={**inherited, **place, **environ},
            )
        said = [one for one in log.read_text().splitlines() if one.startswith("bt_lightning: ")]
        return done.returncode, [one.removeprefix("bt_lightning: ") for one in said]

    return start


@pytest.mark.timeout(300)
def test_a_run_says_where_it_saves_what_it_resumes_and_what_it_leaves(run, tmp_path):
    root, store = tmp_path.resolve() / "ck", Path(tmp_path, "store").as_uri()
    status, said = run("0.1", "secret-one", DIE_AT="25")
    assert status == -9
    assert said == [
        f"saves to {root}, and sends to {store}, job j1 of project default",
        "begins at step 0: there is nothing to resume from",
    ]
    status, said = run("0.01", "secret-two")
    assert status == 0
    assert f"saves to {root}, and sends to {store}, job j1 of project default" in said
    (resumed,) = [line for line in said if line.startswith("resumes checkpoint-20, step 20, of ")]
    assert f"from {root / 'checkpoint-20'}, saved on {os.uname().nodename}" in resumed
    assert "hyperparameters that differ from the checkpoint's: lr 0.1 -> 0.01" in said
    end = said[-1]
    look = f"bt-lightning checkpoints list --store {store} --job-id j1"
    assert end.startswith("saved 2 checkpoints, keeps ")
    assert end.endswith(f", all in {store}. Look: {look}")


def test_a_run_can_be_quiet(run):
    status, said = run("0.1", "x", BT_LOG_LEVEL="warning")
    assert (status, said) == (0, [])


@pytest.mark.timeout(300)
def test_without_a_store_checkpoints_from_before_are_counted_too(run, tmp_path):
    only_disk = {"BT_STORE_URL": "", "KEEP": "-1"}
    assert run("0.1", "x", DIE_AT="25", **only_disk)[0] == -9
    status, said = run("0.1", "x", **only_disk)
    assert status == 0
    root = tmp_path.resolve() / "ck"
    look = f"bt-lightning checkpoints list --dir {root}"
    assert said[-1] == f"saved 2 checkpoints, keeps 4, in {root}. Look: {look}"


def test_a_level_that_is_none_is_refused(run):
    status, _ = run("0.1", "x", BT_LOG_LEVEL="loud")
    assert status == 1
