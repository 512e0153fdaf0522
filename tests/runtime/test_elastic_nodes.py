"""A job of two nodes loses one, goes on with the other, and takes it back when it returns.

The nodes are two runners of this machine, with directories of their own and one store.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SCRIPT = Path(__file__).with_name("elastic_training.py")
LIMIT_S = 200.0


class Job:
    """One job, and its nodes."""

    def __init__(self, runner) -> None:
        self._runner = runner
        self.folder = runner.path
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]

    def start(self, node):
        """The runner of a node."""
        env = {
            "BT_NODE_RANK": str(node),
            "BT_LEADER_ADDR": f"127.0.0.1:{self._port}",
            "OMP_NUM_THREADS": "1",
        }
        own = self.folder / f"node-{node}"
        options = ["--elastic", "--nnodes=1:2", "--join-wait=10", "--retries=3"]
        options += [f"--dir={own}", f"--store={self.folder / 'store'}", "--job-id=j"]
        words = [*options, "--nproc-per-node=1", "--", sys.executable, str(SCRIPT), self.folder]
        return self._runner.start(*words, env=env, start_new_session=True)

    def starts(self):
        """What each start of a rank noted, in order."""
        file = self.folder / "starts"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def await_(self, over, *nodes):
        """Until `over()`; a node that ended before is an error."""
        until = time.monotonic() + LIMIT_S
        while not over():
            for node in nodes:
                assert node.poll() is None, "\n".join(node.communicate())
            assert time.monotonic() < until, self.starts()
            time.sleep(0.05)


def lose(node):
    """All of a node is gone at once, as its machine."""
    family = [psutil.Process(node.pid)]
    family += family[0].children(recursive=True)
    for process in family:
        process.suspend()  # nobody sees another go
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    node.communicate(timeout=60)


def test_a_job_goes_on_with_fewer_nodes_and_with_more_again(runner):
    job = Job(runner)
    other = job.start(1)  # first, so that torch would give it the lower rank
    job.await_(lambda: psutil.Process(other.pid).children(), other)
    first = job.start(0)
    job.await_((job.folder / "stopped").exists, first, other)
    assert sorted((s["node"], s["rank"], s["world"]) for s in job.starts()) == [
        (0, 0, 2),
        (1, 1, 2),
    ]
    lose(other)
    job.await_(lambda: len(job.starts()) == 3, first)
    alone = job.starts()[2]
    assert (alone["node"], alone["rank"], alone["world"]) == (0, 0, 1)
    assert alone["step"] == 6  # the last save
    other = job.start(1)
    job.await_(lambda: len(job.starts()) >= 5, first, other)
    again = job.starts()[3:5]
    assert sorted((s["node"], s["rank"], s["world"]) for s in again) == [(0, 0, 2), (1, 1, 2)]
    assert again[0]["step"] == again[1]["step"] >= alone["step"]
    runner.end(first, 0, LIMIT_S)
    runner.end(other, 0, LIMIT_S)
    record = json.loads((job.folder / "node-0" / ".bt_lightning" / "job.json").read_text())
    assert record["status"] == "COMPLETED"
    outcomes = [one["outcome"] for one in record["attempts"]]
    assert (outcomes[0], outcomes[-1]) == ("failed", "done")
    assert "preempted" not in outcomes  # torchrun ended the processes, for the node that came
    assert not list((job.folder / "node-1").glob("*/bt_manifest.json"))  # rank 0 stayed on node 0
