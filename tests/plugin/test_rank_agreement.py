"""Ranks that see different things: nobody waits for somebody who does not come."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

from bt_lightning.localdir.event_log import read_events

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.matrix

TRAIN = """
import os, sys
from datetime import timedelta
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
import plugin_runs as runs
from bt_lightning import BTLightning

trainer = runs.trainer(
    os.environ["HERE"],
    BTLightning(dir=os.environ["HERE"], store=os.environ.get("STORE"), job="job"),
    ModelCheckpoint(every_n_train_steps=2),
    max_epochs=int(sys.argv[1]),
    num_nodes=int(os.environ["RANKS"]),
    strategy=DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=600)),
)
module = runs.Net()
trainer.fit(module, runs.loader(), runs.validation(), ckpt_path=os.environ.get("FROM"))
print("began at", module.steps[0], "ended at", trainer.global_step)
"""


@pytest.fixture
def disks(tmp_path: Path) -> tuple[Path, list[Path]]:
    """One path, and what lies there for each of four ranks."""
    there, folders = tmp_path / "disk", [tmp_path / f"disk-{rank}" for rank in range(4)]
    for folder in (there, *folders):
        folder.mkdir()
    return there, folders


@pytest.mark.parametrize(("ranks", "store"), [(2, True), (4, False)])
def test_a_disk_of_each_node_is_told_of_and_refused_at_a_resume(
    scripts: Any, tmp_path: Path, disks: tuple[Path, list[Path]], ranks: int, store: bool
) -> None:
    """Nothing but rank 0's directory has checkpoints; every rank says so, within a minute.

    In the store they are those of rank 0's node too: no rank looks for its own.
    """
    there, folders = disks[0], disks[1][:ranks]
    envs = [{"HERE": str(there), "BT_NODE_RANK": str(rank)} for rank in range(ranks)]
    if store:
        envs = [{**env, "STORE": f"file://{tmp_path}/store"} for env in envs]
    first = scripts.ranks(TRAIN, 1, envs=envs, disks=(there, folders))
    assert [done.code for done in first] == [0] * ranks, "\n".join(map(str, first))
    assert "a restart of it will be refused" in first[0].err
    assert "a restart" not in first[1].err
    for done in scripts.ranks(TRAIN, 2, envs=envs, disks=(there, folders), timeout=60):
        assert done.code == 1, str(done)
        assert "CheckpointNotFoundError: rank" in done.err
        assert f"1 (host {socket.gethostname()})" in done.err
        assert f"not see {there}/checkpoint-{8 // ranks}" in done.err
        assert "must share" in done.err
        assert "BT_CHECKPOINT_DIR" in done.err
        assert "job/rank-1" not in done.err


def test_directories_of_different_names_are_that_of_rank_0(scripts: Any, tmp_path: Path) -> None:
    envs = [{"HERE": str(tmp_path / f"disk-{rank}")} for rank in range(2)]
    scripts.ranks(TRAIN, 1, envs=envs)
    again = scripts.ranks(TRAIN, 2, envs=envs)
    assert [done.out for done in again] == ["began at 4 ended at 8\n"] * 2, str(again[0])
    assert list((tmp_path / "disk-0").glob("checkpoint-*"))
    assert not (tmp_path / "disk-1").exists()


def test_one_directory_seen_by_all_is_resumed_from(scripts: Any, tmp_path: Path) -> None:
    envs = [{"HERE": str(tmp_path / "disk")}] * 2
    first = scripts.ranks(TRAIN, 1, envs=envs)
    assert "a restart" not in first[0].err


@pytest.mark.parametrize("seen_by", ["0", "1"])
def test_a_path_of_the_user_that_one_rank_lacks_ends_all(
    scripts: Any, tmp_path: Path, seen_by: str
) -> None:
    shared = {"HERE": str(tmp_path / "disk")}
    scripts.ranks(TRAIN, 1, envs=[shared] * 2)
    (newest,) = (tmp_path / "disk").glob("checkpoint-*")
    wrong = str(tmp_path / "disk" / "checkpoint-99")
    envs = [{**shared, "FROM": str(newest) if seen_by == str(rank) else wrong} for rank in (0, 1)]
    for done in scripts.ranks(TRAIN, 2, envs=envs, timeout=60):
        assert done.code == 1, str(done)
        assert "checkpoint-99" in done.err


AGAIN = """
import os, sys, time
from datetime import timedelta
from pathlib import Path
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
import plugin_runs as runs
from bt_lightning import BTLightning
from bt_lightning.session.leave_fit_together import FitEnd

told = []
announce = FitEnd.announce

def timed(end, **how):
    told.append(time.monotonic())
    return announce(end, **how)

FitEnd.announce = timed
for turn in range(3):
    root = os.path.join(sys.argv[1], f"fold-{turn}")
    trainer = runs.trainer(
        root,
        BTLightning(dir=root, store=f"file://{sys.argv[1]}/store", job=f"fold-{turn}"),
        ModelCheckpoint(every_n_train_steps=2),
        max_epochs=1,
        num_nodes=int(os.environ["RANKS"]),
        strategy=DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=600)),
    )
    trainer.fit(runs.Net(), runs.loader(), runs.validation())
    print("left", time.monotonic(), *told)
    torch.distributed.destroy_process_group()
    gone = Path(sys.argv[1], f"gone-{turn}")  # the store of the group, which is rank 0's
    if trainer.is_global_zero:
        gone.touch()
    while not gone.exists():
        time.sleep(0.005)
print("ended")
"""


@pytest.mark.parametrize("ranks", [2, 4])
def test_trainers_one_after_the_other_each_with_a_group_of_its_own(
    scripts: Any, tmp_path: Path, ranks: int
) -> None:
    """No rank leaves `fit` while rank 0 is still in it: it would find the old key-value store."""
    done = scripts.ranks(AGAIN, tmp_path, envs=[{}] * ranks, timeout=100)
    first, *others = [one.out.splitlines() for one in done]
    assert len(first) == 4, "\n".join(map(str, done))
    for turn in range(3):
        announced = float(first[turn].split()[-1])
        for lines in others:
            assert float(lines[turn].split()[1]) >= announced


LAST = """
import os, signal, sys
from datetime import timedelta
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
import plugin_runs as runs
from bt_lightning import BTLightning

class Tell(Callback):
    def on_train_end(self, trainer, *_):
        if trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

trainer = runs.trainer(
    sys.argv[1],
    BTLightning(dir=sys.argv[1]),
    ModelCheckpoint(),
    Tell(),
    max_epochs=1,
    num_nodes=int(os.environ["RANKS"]),
    strategy=DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=600)),
)
module = runs.Net()
trainer.fit(module, runs.loader(), runs.validation())
trainer.validate(module, runs.validation())
print("validated")
"""


def test_a_signal_of_the_last_moment_ends_all_ranks_or_none(scripts: Any, tmp_path: Path) -> None:
    """One that ended alone would leave the others in the next collective of the script."""
    done = scripts.ranks(LAST, tmp_path / "ck", envs=[{}] * 2, timeout=100)
    assert [one.code for one in done] == [143, 0], "\n".join(map(str, done))
    assert "validated" not in done[0].out + done[1].out
    (event,) = [e for e in read_events(tmp_path / "ck") if e["event"] == "preempted"]
    assert event["checkpoint"] == "checkpoint-4"
