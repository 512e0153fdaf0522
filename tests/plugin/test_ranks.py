"""What several ranks do when one is slow, told to end, or gone in the middle of a save."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from bt_lightning.localdir.event_log import read_events
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

pytestmark = pytest.mark.timeout(300)

SCRIPT = """
import os, signal, sys, time
from datetime import timedelta
from pathlib import Path
import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
import plugin_runs as runs
from bt_lightning import BTLightning
from bt_lightning.session.rank_liveness import LivenessCaller

root, marks, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

def mark(name):
    (marks / f"{name}-{rank}").touch()

def await_mark(name, of):
    until = time.monotonic() + 60
    while not (marks / f"{name}-{of}").exists():
        assert time.monotonic() < until, f"{name} of rank {of} never came"
        time.sleep(0.01)

class User(Callback):
    saves = 0

    def on_train_start(self, trainer, *_):
        mark("started")

    def on_validation_batch_end(self, trainer, *_):
        if what == "race" and rank == ranks - 1:
            mark("validating")
            await_mark("go", "test")
            time.sleep(0.6)  # its thread hears of it meanwhile

    def on_validation_end(self, trainer, *_):
        if what not in {"race", "slow"}:
            return
        if rank == 0 and what == "race":
            await_mark("stopped", "test")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.6)  # its thread asks the others meanwhile
        elif rank == ranks - 1 and what == "slow":
            await_mark("go", "test")
        mark("saving")
        trainer.save_checkpoint(root / "mine")

    def on_save_checkpoint(self, trainer, *_):
        self.saves += 1
        mark(f"save-{self.saves}")
        first = 1 if what.endswith("-at-once") else 2
        if rank == ranks - 1 and self.saves == first:
            if what.startswith("raises"):
                raise ValueError("a user's own")
            if what.startswith("dies"):
                os._exit(9)
            if what == "hangs":
                time.sleep(600)

if what.endswith("-connects-late") and rank == ranks - 1:
    connect = LivenessCaller._connect

    def connect_late(caller):
        time.sleep(1.0)
        connect(caller)

    LivenessCaller._connect = connect_late

L.seed_everything(1)
trainer = runs.trainer(
    root,
    User(),
    BTLightning(dir=root, grace=timedelta(seconds=float(os.environ.get("GRACE", "60")))),
    ModelCheckpoint(every_n_train_steps=3, save_top_k=-1),
    devices=ranks,
    max_epochs=8,
    strategy="ddp",
    num_sanity_val_steps=0,
)
rows = runs.DataLoader(runs.Numbers(length=16 * ranks), batch_size=4)
trainer.fit(runs.Net(), rows, runs.DataLoader(runs.Numbers(length=16 * ranks), batch_size=8))
print("finished", rank)
"""


class Ranks:
    """A script as several ranks without a launcher: nobody ends one because another did."""

    def __init__(self, popen: Any, command: list[str], env: Mapping[str, str], count: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.processes = [
            popen(
                command,
                env={
                    **env,
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(count),
                    "LOCAL_WORLD_SIZE": str(count),
                    "GROUP_RANK": "0",
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    "TORCHELASTIC_RUN_ID": "test",
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            for rank in range(count)
        ]

    def ends(self, limit_s: float = 100) -> list[tuple[int, str]]:
        """Exit status and stderr of each."""
        until = time.monotonic() + limit_s
        found = []
        for process in self.processes:
            try:
                _, err = process.communicate(timeout=max(1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGABRT)
                _, err = process.communicate(timeout=20)
                pytest.fail(f"a rank hung for {limit_s} s\n{err[-8000:]}")
            found.append((process.returncode, err))
        return found

    def end(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture
def start(scripts: Any, tmp_path: Path) -> Iterator[Any]:
    """Start ranks that do `what`; they are gone when the test is over."""
    started: list[Ranks] = []
    marks = tmp_path / "marks"
    marks.mkdir()

    def start(what: str, count: int = 2, **env: str) -> Ranks:
        path = scripts.write(SCRIPT)
        command = [sys.executable, str(path), str(tmp_path / "ck"), str(marks), what]
        started.append(Ranks(scripts.popen, command, scripts.environ(env), count))
        return started[-1]

    yield start
    for ranks in started:
        ranks.end()


def await_path(path: Path, limit_s: float = 60) -> None:
    until = time.monotonic() + limit_s
    while not path.exists():
        assert time.monotonic() < until, f"no {path.name}"
        time.sleep(0.01)


@pytest.mark.parametrize("count", [2, 4])
def test_a_signal_in_a_save_that_waits_for_a_slower_rank_is_obeyed_on_all(start, tmp_path, count):
    """Rank 0 waits for the last rank's state, which stands at a boundary and waits for rank 0."""
    ranks, marks = start("race", count), tmp_path / "marks"
    slow = ranks.processes[-1]
    await_path(marks / f"validating-{count - 1}")
    slow.send_signal(signal.SIGSTOP)
    (marks / "stopped-test").touch()
    await_path(marks / "save-2-0")  # 1 is of ModelCheckpoint, 2 what waits
    slow.send_signal(signal.SIGCONT)
    (marks / "go-test").touch()
    ends = ranks.ends(50)
    assert [code for code, _ in ends] == [143] + [0] * (count - 1), ends
    (event,) = [e for e in read_events(tmp_path / "ck") if e["event"] == "preempted"]
    found, refused, _ = list_committed(tmp_path / "ck")
    assert not refused
    assert found[0].manifest.checkpoint_id == event["checkpoint"]
    assert found[0].manifest.step == 4  # of the first validation


@pytest.mark.parametrize(
    ("what", "codes"),
    [("raises", [1, 1]), ("dies", [1, 9]), ("dies-connects-late", [1, 9])],
)
def test_a_rank_that_is_gone_in_a_save_is_noticed_and_nothing_less_than_whole_is_saved(
    start, tmp_path, what, codes
):
    """The first save is whole; in the second the last rank raises, or its process ends."""
    ranks, marks = start(what), tmp_path / "marks"
    await_path(marks / "save-2-0")
    began = time.monotonic()
    ends = ranks.ends(90)
    assert time.monotonic() - began < 60  # of which this machine may need most
    assert [code for code, _ in ends] == codes, ends
    assert "RankLostError: rank 1 has " in ends[0][1]
    found, refused, _ = list_committed(tmp_path / "ck")
    assert not refused
    assert [one.manifest.step for one in found] == [3]


def test_the_only_save_is_made_though_it_lacks_the_state_of_a_rank(start, tmp_path):
    ends = start("raises-at-once").ends(60)
    assert [code for code, _ in ends] == [1, 1], ends
    (found,), refused, _ = list_committed(tmp_path / "ck")
    assert not refused
    assert found.manifest.step == 3
    assert "rank 1 has ended with ValueError" in found.manifest.origin["inexact"]


def test_a_signal_is_heard_while_a_save_waits_for_a_rank_that_does_not_come(start, tmp_path):
    """It is waited for as long as the signal left, not for half an hour."""
    ranks, marks = start("hangs", GRACE="5"), tmp_path / "marks"
    await_path(marks / "save-2-0")
    ranks.processes[0].send_signal(signal.SIGTERM)
    ranks.processes[0].wait(40)
    ranks.processes[1].kill()
    (event,) = [e for e in read_events(tmp_path / "ck") if e["event"] == "preempted"]
    assert event["step"] == 3
    found, _, _ = list_committed(tmp_path / "ck")
    assert [one.manifest.step for one in found] == [3]


def test_a_rank_may_be_slow(start, tmp_path):
    """It is stopped for longer than a dead one is waited for: that is no death."""
    ranks, marks = start("slow"), tmp_path / "marks"
    await_path(marks / "saving-0")
    slow = ranks.processes[1]
    slow.send_signal(signal.SIGSTOP)
    time.sleep(4)
    slow.send_signal(signal.SIGCONT)
    (marks / "go-test").touch()
    ends = ranks.ends()
    assert [code for code, _ in ends] == [0, 0], ends
    assert "mine" in {one.manifest.checkpoint_id for one in list_committed(tmp_path / "ck")[0]}
