"""Scripts that know nothing of this package, run by `bt-lightning run` or with BT_LIGHTNING=1."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import lightning as L
import psutil
import pytest

from bt_lightning import BTLightning
from bt_lightning.lightning_plugin import auto_callback
from bt_lightning.localdir.event_log import read_events
from bt_lightning.session.fit_selection import process_fits

RUN = ("run",)
MODULE = "from bt_lightning.cli.app import main; main()"

SCRIPT = """
import os, signal
import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        nn = torch.nn
        self.net = nn.Sequential(nn.Linear(8, 4), nn.Dropout(), nn.Linear(4, 1))

    def training_step(self, batch, index):
        if self.global_step == 13 and os.environ["BT_RETRY_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return self.net(batch[0]).pow(2).mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


if __name__ == "__main__":
    L.seed_everything(3)
    rows = DataLoader(TensorDataset(torch.randn(32, 8)), batch_size=4, shuffle=True)
    trainer = L.Trainer(max_epochs=3, accelerator="cpu", logger=False)
    began = trainer.global_step
    net = Net()
    trainer.fit(net, rows)
    print("digest", sum(p.double().sum().item() for p in net.parameters()), trainer.global_step)
"""


@pytest.fixture(autouse=True)
def _new_process():
    process_fits.clear()


@pytest.fixture
def _on(environ, tmp_path):
    environ.setenv("BT_LIGHTNING", "1")
    environ.setenv("BT_CHECKPOINT_DIR", str(tmp_path / "ck"))


def ours(trainer):
    return [c for c in trainer.callbacks if isinstance(c, BTLightning)]


def test_nothing_happens_when_it_is_off(environ, tmp_path):
    environ.setenv("BT_CHECKPOINT_DIR", str(tmp_path / "ck"))
    assert not ours(L.Trainer(logger=False))


def test_the_entry_point_costs_no_import_when_it_is_off(scripts):
    scripts.run(
        "import sys; from bt_lightning.lightning_plugin.lightning_entry_point import callbacks;"
        "assert callbacks() == []; assert not {'torch', 'lightning'} & set(sys.modules)",
        fresh=True,
    )


@pytest.mark.usefixtures("_on")
def test_a_trainer_gets_the_callback(runs, tmp_path, names):
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False)
    assert len(ours(trainer)) == 1
    trainer.fit(runs.Net(), runs.loader())
    assert names(tmp_path / "ck") == {"checkpoint-8"}


@pytest.mark.usefixtures("_on")
def test_one_that_the_script_gave_stays_alone(runs, tmp_path, names):
    own = BTLightning(dir=tmp_path / "own")
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, callbacks=[own])
    trainer.fit(runs.Net(), runs.loader())
    assert ours(trainer) == [own]
    assert names(tmp_path / "own") == {"checkpoint-8"}
    assert not (tmp_path / "ck").exists()


@pytest.mark.usefixtures("_on")
def test_a_second_trainer_does_not_go_on_from_the_first(runs, tmp_path, names, monkeypatch):
    """Two folds of one script: the second would believe that it had been trained already."""
    monkeypatch.chdir(tmp_path)
    first = L.Trainer(max_epochs=1, accelerator="cpu", logger=False)
    first.fit(runs.Net(), runs.loader())
    second = L.Trainer(max_epochs=1, accelerator="cpu", logger=False)
    fold = runs.Net()
    second.fit(fold, runs.loader())
    assert fold.steps[0] == 0
    assert names(tmp_path / "ck") == {"checkpoint-8", "fit-2/checkpoint-8"}
    second_best = tmp_path / "ck" / "fit-2" / "checkpoint-8"
    assert second.checkpoint_callback.best_model_path == str(second_best)
    third = L.Trainer(accelerator="cpu", logger=False)
    third.test(runs.Net(), runs.validation(), ckpt_path=first.checkpoint_callback.best_model_path)


@pytest.mark.usefixtures("_on")
def test_a_strategy_that_writes_around_the_io_is_left_alone(runs, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(auto_callback, "bypass_reason", lambda _: "it is sharded")
    monkeypatch.chdir(tmp_path)
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False)
    trainer.fit(runs.Net(), runs.loader())
    assert trainer.checkpoint_callback.best_model_path.endswith(".ckpt")
    assert not list((tmp_path / "ck").glob("checkpoint-*"))
    assert "stay Lightning's own" in caplog.text


@pytest.mark.usefixtures("_on")
def test_a_script_that_saves_elsewhere_is_saved_at_an_interval(runs, tmp_path, names):
    """Or nothing of it could go on."""
    save = L.pytorch.callbacks.ModelCheckpoint(tmp_path / "elsewhere")
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, callbacks=[save])
    (callback,) = ours(trainer)
    trainer.fit(runs.Net(), runs.loader())
    assert callback._options.interval == "auto"
    assert save.best_model_path.startswith(str(tmp_path / "elsewhere"))


@pytest.mark.usefixtures("_on")
def test_a_trial_does_not_take_the_directory(runs, tmp_path, names):
    L.Trainer(fast_dev_run=True, accelerator="cpu", logger=False).fit(runs.Net(), runs.loader())
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False)
    trainer.fit(runs.Net(), runs.loader())
    assert names(tmp_path / "ck") == {"checkpoint-8"}


@pytest.mark.timeout(300)  # three starts of a script that imports torch
def test_an_unchanged_script_is_killed_started_again_and_ends_as_if_it_had_not_been(
    scripts, tmp_path
):
    script = scripts.write(SCRIPT)
    whole = scripts.run(script, env={"BT_RETRY_COUNT": "1"}, code=0)
    wanted = [line for line in whole.out.splitlines() if line.startswith("digest")]
    job = ("--store", tmp_path / "store", "--job-id", "j", "--dir", tmp_path / "ck")
    words = (*RUN, *job, "--retries", "1", "--", sys.executable, script)
    done = scripts.run(scripts.write(MODULE), *words)
    assert [line for line in done.out.splitlines() if line.startswith("digest")] == wanted
    record = json.loads((tmp_path / "ck" / ".bt_lightning" / "job.json").read_text())
    assert [one["outcome"] for one in record["attempts"]] == ["failed", "done"]
    assert record["newest_step"] == 24
    assert record["checkpoint_sync_status"] == "COMPLETED"
    kept = sorted(path.parent.name for path in (tmp_path / "store").rglob("bt_manifest.json"))
    assert kept == ["checkpoint-24"]


LIGHTNING_CLI = """
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import DemoModel, BoringDataModule


def cli_main():
    cli = LightningCLI(DemoModel, BoringDataModule)


if __name__ == "__main__":
    cli_main()
"""
"""Of Lightning's documentation of its LightningCLI, word by word but for comments."""


@pytest.mark.timeout(300)  # two starts of a script that imports torch
def test_the_script_of_lightnings_documentation_is_killed_and_goes_on(scripts, tmp_path, names):
    script, root = scripts.write(LIGHTNING_CLI), tmp_path / "ck"
    job = ("--store", tmp_path / "store", "--job-id", "j", "--dir", root, "--retries", "1")
    fit = ("fit", "--trainer.accelerator=cpu", "--trainer.max_epochs=20")
    words = (sys.executable, "-m", "bt_lightning", *RUN, *job, "--", sys.executable, script, *fit)
    with (tmp_path / "log").open("w") as log:
        runner = subprocess.Popen(
            [str(word) for word in words],
            cwd=tmp_path,
            env=scripts.environ(),
            stdout=log,
            stderr=log,
        )
        try:
            while not names(root):
                assert runner.poll() is None, (tmp_path / "log").read_text()
                os.sched_yield()
            (training,) = (
                child
                for child in psutil.Process(runner.pid).children(recursive=True)
                if str(script) in child.cmdline()
            )
            training.kill()
            assert runner.wait(200) == 0, (tmp_path / "log").read_text()
        finally:
            runner.terminate()
            runner.wait(60)
    record = json.loads((root / ".bt_lightning" / "job.json").read_text())
    assert [one["signal"] for one in record["attempts"]] == [signal.SIGKILL, None]
    assert (record["status"], record["newest_step"]) == ("COMPLETED", 20 * 64)
    first, second = (event["step"] for event in read_events(root) if event["event"] == "began")
    assert first == 0 < second
