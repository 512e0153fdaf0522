"""Signals under the launchers that people use, and SLURM's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from bt_lightning.localdir.event_log import read_events
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = """
import os, signal, sys
from datetime import timedelta
import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
import plugin_runs as runs
from bt_lightning import BTLightning

root, devices, whom, number = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])

class Tell(Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step != 5 or whom == "nobody":
            return
        if whom == "group" and trainer.is_global_zero:
            os.killpg(0, number)
        elif whom == str(trainer.global_rank):
            os.kill(os.getpid(), number)

L.seed_everything(1)
trainer = runs.trainer(
    root,
    BTLightning(dir=root, grace=timedelta(seconds=60)),
    ModelCheckpoint(every_n_train_steps=4),
    Tell(),
    devices=devices,
    max_epochs=20,
    strategy="ddp" if devices > 1 else "auto",
)
trainer.fit(runs.Net(), runs.loader(), runs.validation())
print("finished", trainer.global_rank)
"""


def check_newest(root: Path) -> None:
    """What the event names is the newest, and of a step after the signal."""
    (event,) = [event for event in read_events(root) if event["event"] == "preempted"]
    found, refused, _ = list_committed(root)
    assert not refused
    assert found[0].manifest.checkpoint_id == event["checkpoint"]
    assert found[0].manifest.step == event["step"] >= 6


@pytest.mark.parametrize("whom", ["group", "0", "1"])
def test_ranks_of_the_subprocess_launcher_end_together(scripts: Any, tmp_path: Path, whom: str):
    """Lightning's own handler hangs when the whole group is told."""
    root = tmp_path / "ck"
    scripts.run(SCRIPT, root, 2, whom, int(signal.SIGTERM), code=143)
    check_newest(root)
    if whom == "group":
        again = scripts.run(SCRIPT, root, 2, "nobody", 0)
        assert "finished 0" in again.out


@pytest.mark.parametrize("whom", ["0", "1"])
def test_ranks_of_torchrun_end_together(scripts: Any, tmp_path: Path, whom: str):
    root = tmp_path / "ck"
    before = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    path = scripts.write(SCRIPT)
    command = [*before, str(path), str(root), "2", whom, str(int(signal.SIGTERM))]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=scripts.environ(),
        cwd=tmp_path,
    )
    assert done.returncode == 1, done.stderr[-3000:]  # torchrun's own, for a rank that failed
    assert "exitcode  : 143" in done.stderr
    check_newest(root)


def test_slurm_requeues_what_was_saved_first(scripts: Any, tmp_path: Path):
    """SLURM announces the end; the job is queued again by Lightning, as it always was."""
    root, tools = tmp_path / "ck", tmp_path / "bin"
    tools.mkdir()
    scontrol = tools / "scontrol"
    scontrol.write_text(
        textwrap.dedent(f"""\
        #!/bin/sh
        ls {root} > {tmp_path}/saved
        echo "$@" > {tmp_path}/asked
        kill -TERM $PPID
        """)
    )
    scontrol.chmod(0o755)
    slurm = {
        "SLURM_NTASKS": "1",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NAME": "train",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "localhost",
        "PATH": f"{tools}:{os.environ['PATH']}",
    }
    scripts.run(SCRIPT, root, 1, "0", int(signal.SIGUSR1), env=slurm, code=143)
    assert (tmp_path / "asked").read_text().split() == ["requeue", "77"]
    # ours, or what Lightning's own requeue saves of the same state when ours is still under way
    saved = (tmp_path / "saved").read_text().split()
    assert {"interim-6", "hpc_ckpt_1.ckpt"}.intersection(saved)
    found, _, _ = list_committed(root)
    assert found[0].manifest.step >= 6
    again = scripts.run(SCRIPT, root, 1, "nobody", 0, env=slurm)
    assert "finished 0" in again.out
