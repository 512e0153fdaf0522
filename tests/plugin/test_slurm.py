"""SLURM announces the end of a job: saved once, requeued once, and resumed from the newest."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest

from bt_lightning.errors import CheckpointCorruptError

if TYPE_CHECKING:
    from pathlib import Path

OLD = tuple(map(int, version("lightning").split(".")[:2])) < (2, 6)
SLURM = {
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NAME": "train",
    "SLURM_LOCALID": "0",
    "SLURM_NODELIST": "localhost",
}

SCRIPT = """
import os, signal, sys
import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
import plugin_runs as runs
from bt_lightning import BTLightning

root, ranks, signals = sys.argv[1], int(os.environ["RANKS"]), sys.argv[2]

class Tell(Callback):
    def on_train_batch_start(self, trainer, *_):
        if signals == "none":
            return
        if signals == "together":
            if trainer.global_step == 6:
                os.kill(os.getpid(), signal.SIGUSR1)
                os.kill(os.getpid(), signal.SIGTERM)
            return
        if trainer.global_step == 2 + trainer.global_rank:  # not at once
            os.kill(os.getpid(), signal.SIGUSR1)
        if trainer.global_step == 14:
            os.kill(os.getpid(), signal.SIGTERM)

trainer = runs.trainer(
    root,
    BTLightning(dir=root),
    ModelCheckpoint(every_n_train_steps=4, save_top_k=-1),
    Tell(),
    devices=1,
    num_nodes=ranks,
    max_epochs=10,
    strategy="ddp" if ranks > 1 else "auto",
)
assert type(trainer._accelerator_connector.cluster_environment).__name__ == "SLURMEnvironment"
module = runs.Net()
trainer.fit(module, runs.loader())
print("began at", module.steps[0], "ended at", trainer.global_step)
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Any:
    """The environments of so many tasks of a job, and the file that says what SLURM was asked."""
    tools, asked = tmp_path / "bin", tmp_path / "asked"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    (tools / "scontrol").chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"

    def cluster(ranks: int) -> tuple[list[dict[str, str]], Path]:
        return [
            {
                **SLURM,
                "PATH": path,
                "SLURM_NTASKS": str(ranks),
                "SLURM_PROCID": str(rank),
                "SLURM_NODEID": str(rank),
            }
            for rank in range(ranks)
        ], asked

    return cluster


def test_all_ranks_are_told_and_the_job_is_requeued_once(
    scripts: Any, names: Any, cluster: Any, tmp_path: Path
) -> None:
    root = tmp_path / "ck"
    envs, asked = cluster(2)
    first = scripts.ranks(SCRIPT, root, "both", envs=envs)
    assert [done.code for done in first] == [143, 0], "\n".join(map(str, first))
    assert asked.read_text() == "requeue 77\n"
    assert [file.name for file in root.glob("hpc_ckpt_*")] == ["hpc_ckpt_1.ckpt"]
    steps = {int(name.partition("-")[2]) for name in names(root)}
    assert max(steps) >= 14
    again = scripts.ranks(SCRIPT, root, "none", envs=envs)
    assert [done.out for done in again] == [f"began at {max(steps)} ended at 40\n"] * 2
    assert not [name for name in names(root) if "-v" in name]


def test_an_end_that_is_told_before_the_requeue_is_done_requeues_too(
    scripts: Any, names: Any, cluster: Any, tmp_path: Path
) -> None:
    """A step may take longer than SLURM leaves between the two signals."""
    root = tmp_path / "ck"
    envs, asked = cluster(2)
    first = scripts.ranks(SCRIPT, root, "together", envs=envs)
    assert [done.code for done in first] == [143, 0], "\n".join(map(str, first))
    assert asked.read_text() == "requeue 77\n"
    assert (root / "hpc_ckpt_1.ckpt").exists()
    assert max(int(name.partition("-")[2]) for name in names(root)) >= 7


@pytest.fixture
def requeued(environ: pytest.MonkeyPatch) -> None:
    """This process is a job of one task that SLURM has queued again."""
    for name, value in {**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}.items():
        environ.setenv(name, value)


def stock(runs: Any, root: Path, steps: int, name: str = "hpc_ckpt_1.ckpt") -> None:
    """What Lightning itself leaves when SLURM announces the end after so many steps."""
    done = runs.fit(root, callbacks=[], max_steps=steps, enable_checkpointing=False)
    done.trainer.save_checkpoint(root / name)


@pytest.mark.usefixtures("requeued")
@pytest.mark.parametrize(("theirs", "ours", "expected"), [(6, 10, 10), (12, 10, 12), (6, 0, 6)])
def test_the_newest_of_both_wins(
    runs: Any, names: Any, tmp_path: Path, theirs: int, ours: int, expected: int
) -> None:
    if ours:
        runs.fit(tmp_path, make=lambda: runs.Net(stop_at=ours))
    stock(runs, tmp_path, theirs)
    again = runs.fit(tmp_path, max_steps=14, max_epochs=-1)
    assert again.first_step == expected
    assert not [name for name in names(tmp_path) if "-v" in name]


@pytest.mark.usefixtures("requeued")
def test_of_both_the_newest_that_is_whole_wins(runs: Any, tmp_path: Path) -> None:
    runs.fit(tmp_path, make=lambda: runs.Net(stop_at=5))
    stock(runs, tmp_path, 9)
    file = tmp_path / "hpc_ckpt_1.ckpt"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert runs.fit(tmp_path, make=lambda: runs.Net(stop_at=6)).first_step == 5
    file.write_bytes(whole)
    for weights in tmp_path.glob("checkpoint-*/model.safetensors"):
        weights.write_bytes(bytes(weights.stat().st_size))
    assert runs.fit(tmp_path, make=lambda: runs.Net(stop_at=10)).first_step == 9


@pytest.mark.usefixtures("requeued")
def test_where_none_is_whole_nothing_begins_anew(runs: Any, tmp_path: Path) -> None:
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"half")
    with pytest.raises(CheckpointCorruptError, match=r"hpc_ckpt_1\.ckpt: refused"):
        runs.fit(tmp_path)


@pytest.mark.usefixtures("requeued")
def test_a_path_that_the_user_names_is_taken_though_it_is_older(runs: Any, tmp_path: Path) -> None:
    runs.fit(tmp_path, make=lambda: runs.Net(stop_at=8))
    stock(runs, tmp_path, 3)
    asked = runs.fit(tmp_path, ckpt_path="hpc", make=lambda: runs.Net(stop_at=4))
    assert asked.first_step == 3
    path = str(tmp_path / "hpc_ckpt_1.ckpt")
    named = runs.fit(tmp_path, ckpt_path=path, make=lambda: runs.Net(stop_at=4))
    assert named.first_step == 3


@pytest.mark.usefixtures("requeued")
def test_a_second_fit_goes_on_where_it_stands(runs: Any, tmp_path: Path) -> None:
    """Lightning itself would go back to what SLURM's requeue left."""
    stock(runs, tmp_path, 3)
    run = runs.fit(tmp_path, max_epochs=2)
    run.trainer.fit_loop.max_epochs = 3
    run.trainer.fit(run.module, runs.loader(), runs.validation())
    assert run.module.steps == list(range(3, run.trainer.global_step))


@pytest.mark.filterwarnings("ignore:.*ckpt_path")
def test_what_an_exception_left_does_not_win_over_what_is_newer(runs: Any, tmp_path: Path) -> None:
    """Lightning takes it for every fit that names no path."""
    from lightning.pytorch.callbacks import OnExceptionCheckpoint

    def fit(stop_at: int) -> Any:
        more = OnExceptionCheckpoint(tmp_path / "elsewhere")
        return runs.fit(tmp_path / "ck", more, make=lambda: runs.Net(stop_at=stop_at))

    fit(4)
    elsewhere = tmp_path / "elsewhere" / "on_exception.ckpt"
    old = elsewhere.read_bytes()
    assert fit(7).first_step == 4
    elsewhere.write_bytes(old)
    assert fit(9).first_step == 7
