"""A job whose processes are killed and whose disk is lost is known from its store alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.store.conftest import SECRET, s3  # noqa: F401 - a fixture

pytestmark = pytest.mark.matrix

LIMIT_S = 400
"""Of a run of Lightning, on a busy machine."""
SCRIPT = """
import os
import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(8, 1)

    def training_step(self, batch, index):
        if "DIE" in os.environ and self.global_step == 15:
            print("last words and", os.environ["AWS_SECRET_ACCESS_KEY"])
            os.kill(os.getpid(), 9)
        loss = self.net(batch[0]).pow(2).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


if __name__ == "__main__":
    save = L.pytorch.callbacks.ModelCheckpoint(every_n_train_steps=10, save_top_k=-1)
    rows = DataLoader(TensorDataset(torch.ones(80, 8)), batch_size=4)
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", callbacks=[save], log_every_n_steps=1, **quiet
    )
    trainer.fit(Net(), rows)
"""


@pytest.mark.timeout(1000)
def test_a_job_without_its_machine_is_told_by_its_store(runner, s3):  # noqa: F811
    (runner.path / "train.py").write_text(SCRIPT)
    url = f"s3://bucket/{runner.path.name}"
    env = {
        "AWS_ACCESS_KEY_ID": s3.options["key"],
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3.endpoint,
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
    }
    words = ("--store", url, "--project", "p", "--job-id", "j", "--", sys.executable, "train.py")
    runner.end(runner.start(*words, env={**env, "DIE": "1"}), 137, LIMIT_S)
    shutil.rmtree(runner.path / "bt_checkpoints")
    runner.end(runner.start(*words, env=env), 0, LIMIT_S)
    shutil.rmtree(runner.path / "bt_checkpoints")

    def said(*words):
        command = [sys.executable, "-m", "bt_lightning", *words, "--store", url]
        done = subprocess.run(
            command,
            cwd=runner.path,
            env={**os.environ, **env},
            capture_output=True,
            check=False,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    logs = said("jobs", "logs", "j")
    assert "last words and ***\n" in logs
    assert "--- attempt 1, " in logs
    assert SECRET not in logs
    rows = json.loads(said("jobs", "metrics", "j", "-o", "json"))["rows"]
    steps = [row["step"] for row in rows]
    assert steps == sorted(steps)
    assert {*range(1, 21)} - {*steps} <= {10}  # logged behind its save, and maybe at the kill
    events = json.loads(said("jobs", "events", "j", "-o", "json"))["events"]
    began = [event["step"] for event in events if event["event"] == "began"]
    assert began == [0, 10]
    published = [event["checkpoint"] for event in events if event["event"] == "published"]
    assert published == ["checkpoint-10", "checkpoint-20"]
    told = said("jobs", "show", "j")
    assert "runs: 2, restarts: 1\n" in told
    assert "attempt 0: failed with signal 9" in told
    said("report", "--job-id", "j", "--project", "p")
    page = (runner.path / "report.html").read_text()
    assert "<span>restarts</span><b>1</b>" in page
    assert "None." not in page
    command = ("jobs", "delete", "j", "--project", "p", "--yes")
    said(*command)
    import s3fs

    files = s3fs.S3FileSystem(skip_instance_cache=True, **s3.options)
    left = files.find(url.removeprefix("s3://"))
    assert [key for key in left if "/jobs/j/" in key] == []
