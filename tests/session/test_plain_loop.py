"""A session without any framework: saved, killed, resumed, and as if it had not been killed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bt_lightning import UnsafeLoadError
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, verify
from bt_lightning.session.checkpoint_writer import CheckpointWriter
from bt_lightning.session.options import Options
from bt_lightning.session.rank_session import RankSession
from bt_lightning.session.start_point import StartPoint


class Odd:
    """What only pickle can hold."""


LOOP = Path(__file__).with_name("plain_loop.py")


def start(root: Path, *words: object, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, LOOP, root, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(root: Path, *words: object, code: int = 0) -> list[str]:
    done = start(root, *words)
    out, err = done.communicate(timeout=90)
    assert done.returncode == code, err
    return out.splitlines()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What a loop says that nobody killed."""
    said = run(tmp_path_factory.mktemp("whole") / "root", 20)
    assert said[0] == "began at 0"
    return said


@pytest.mark.matrix
@pytest.mark.parametrize("lost", ["nothing", "disk"])
def test_a_killed_loop_goes_on_and_ends_as_one_that_was_not(
    expected: list[str], tmp_path: Path, lost: str
) -> None:
    root = tmp_path / "killed"
    assert run(root, 20, "kill", 10, code=-9) == ["began at 0"]
    if lost == "disk":
        run(root, 10)  # the worker of a killed loop publishes what it can; this one all
        shutil.rmtree(root)
    began, ended = run(root, 20)
    assert began in {"began at 6", "began at 9"}  # a kill may come before the commit of the last
    assert ended == expected[1]
    steps = [one.manifest.step for one in list_committed(root).found]
    assert sorted(steps) == [int(began.split()[-1]), 15, 18]  # what it began at stays
    for one in list_committed(root).found:
        verify(one.path)


def test_two_ranks_start_from_what_rank_0_found(expected: list[str], tmp_path: Path) -> None:
    root = tmp_path / "together"
    for steps, began in ((10, "began at 0"), (20, "began at 9")):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        ranks = [start(root, steps, **where, RANK=str(rank)) for rank in (0, 1)]
        said = [rank.communicate(timeout=90) for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0], said
        assert all(out.splitlines()[0] == began for out, _ in said)
    assert all(out.splitlines()[1] == expected[1] for out, _ in said)


def test_only_the_job_s_own_checkpoints_are_unpickled_by_the_variable(tmp_path: Path) -> None:
    """`BT_WEIGHTS_ONLY=0` says nothing of what a platform laid in the load directory."""
    root, other = tmp_path / "own", tmp_path / "loaded"
    options = Options.of(dir=str(root)).merged({"BT_WEIGHTS_ONLY": "0"})
    for place in (root, other):
        writer = CheckpointWriter()
        with pytest.warns(UserWarning, match="pickle"):
            writer.save({"step": 1, "state": Odd()}, place / "step-1", place)
    session = RankSession(options)
    found = session.load(StartPoint(str(root / "step-1"), None, warm=False), root)
    assert found is not None
    assert isinstance(found["state"], Odd)
    with pytest.raises(UnsafeLoadError):
        session.load(StartPoint(str(other / "step-1"), None, warm=False), root)
