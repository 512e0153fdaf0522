"""Sharded runs on nodes with disks of their own: the store has the whole, each disk its part."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from bt_lightning.localdir.kept_parts import kept_manifests
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.path_layout import job_prefix
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.catalog.listing import list_job
from bt_lightning.store.transfer.checkpoint_reader import StoreReader, read_verified

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(300)]

SCRIPT = Path(__file__).with_name("sharded_runs.py")
KILLED = -9
PREFIX = job_prefix("p", "j", 0)


class Cluster:
    """Two nodes that have the same path for their own disks, and a store."""

    def __init__(self, scripts: Any, tmp_path: Path) -> None:
        self.scripts, self.tmp_path = scripts, tmp_path
        self.there = tmp_path / "disk"
        self.disks = [tmp_path / f"disk-{node}" for node in range(2)]
        self.store = LocalStore(tmp_path / "store")
        for folder in (self.there, *self.disks):
            folder.mkdir()

    def job(self, name: str, **more: Any) -> dict[str, Any]:
        return {
            "out": str(self.tmp_path / name),
            "root": str(self.there / "ck"),
            "kind": "fsdp",
            "dropout": 0.3,
            "bt": {"store": f"file://{self.tmp_path}/store", "project": "p", "job": "j"},
            **more,
        }

    def run(self, name: str, codes: tuple[int, ...] = (0,), **more: Any) -> list[dict[str, Any]]:
        """One fit on both nodes; what each rank has to say."""
        return self.run_all([self.job(name, **more)], codes)[0]

    def run_all(
        self, jobs: list[dict[str, Any]], codes: tuple[int, ...] = (0,), timeout: float = 110
    ) -> list[list[dict[str, Any]]]:
        """Several fits, one after the other; what each rank has to say of each."""
        path = Path(f"{jobs[0]['out']}.json")
        path.write_text(json.dumps(jobs))
        envs = [{"BT_NODE_RANK": str(node), "BT_GROUP_SIZE": "2"} for node in range(2)]
        done = self.scripts.ranks(
            SCRIPT, path, envs=envs, disks=(self.there, self.disks), timeout=timeout
        )
        assert {process.code for process in done} <= set(codes), "\n".join(map(str, done))
        assert not [str(one) for one in done if "restart of it will be refused" in one.err]
        found = [sorted(Path(job["out"]).glob("[01].json")) for job in jobs]
        return [[json.loads(file.read_text()) for file in files] for files in found]

    def steps(self) -> list[int]:
        """Of the checkpoints of the store, each whole."""
        found = []
        for folder in list_job(self.store, PREFIX).committed:
            reader = StoreReader(self.store, PREFIX, folder)
            for entry in reader.manifest.files:
                reader.check(entry)
                read_verified(reader, entry, 0, [memoryview(bytearray(entry.size))])
            found.append(reader.manifest.step)
        return sorted(found)


@pytest.fixture
def cluster(scripts: Any, tmp_path: Path) -> Cluster:
    return Cluster(scripts, tmp_path)


@pytest.mark.parametrize(
    "lost", [1, pytest.param(0, marks=pytest.mark.slow), pytest.param(None, marks=pytest.mark.slow)]
)
def test_both_nodes_go_on_from_one_step_though_one_has_lost_its_disk(
    cluster: Cluster, lost: int | None
) -> None:
    whole = cluster.run(
        "whole",
        root=str(cluster.there / "other"),
        bt={
            "store": f"file://{cluster.tmp_path}/other",
            "project": "p",
            "job": "other",
        },
    )
    cluster.run("killed", codes=(KILLED,), stop_at=9, end="kill")
    stored = cluster.steps()
    assert stored
    assert not [step for step in stored if step % 2]
    for disk in cluster.disks:
        assert list_committed((disk / "ck").resolve()).found == []
        kept = {one.step for one in kept_manifests(disk / "ck").values() if one}
        assert kept <= set(cluster.steps())  # workers may have sent more meanwhile
    while lost is not None and (cluster.disks[lost] / "ck").exists():
        shutil.rmtree(cluster.disks[lost] / "ck", ignore_errors=True)  # a worker still drains there
    resumed = cluster.run("resumed", seed=9)
    (first,) = {one["first"] for one in resumed}
    assert stored[-1] <= first <= 8
    assert first in cluster.steps()
    assert [one["digest"] for one in resumed] == [one["digest"] for one in whole]
    assert cluster.steps()[-1] == whole[0]["step"]
    assert not list((cluster.tmp_path / "store").rglob("rank-1"))


def test_without_a_store_the_start_is_refused_on_every_node_with_what_to_do(
    cluster: Cluster,
) -> None:
    job = cluster.job("run", bt={})
    path = cluster.tmp_path / "jobs.json"
    path.write_text(json.dumps([job]))
    done = cluster.scripts.ranks(
        SCRIPT, path, envs=[{}] * 2, disks=(cluster.there, cluster.disks), timeout=100
    )
    for process in done:
        assert process.code == 1, str(process)
        assert "InvalidSettingError: rank 1 (host" in process.err
        assert "BT_STORE_URL" in process.err


def test_retention_of_rank_0_reaches_the_store_and_every_node(cluster: Cluster) -> None:
    said = cluster.run("run", save={"save_top_k": 1, "save_last": False})
    last = said[0]["step"]
    assert cluster.steps() == [last]
    for disk in cluster.disks:
        (kept,) = kept_manifests(disk / "ck").values()
        assert kept.step == last


@pytest.mark.parametrize(
    "times",
    [4, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_nodes_that_lose_their_disks_again_and_again_always_go_on_together(
    cluster: Cluster, times: int
) -> None:
    dice = random.Random(times)
    jobs = [
        cluster.job(
            f"run-{number}",
            lose=dice.randrange(2) if number else None,
            epochs=-1,
            trainer={"max_steps": 2 * (number + 1)},
        )
        for number in range(times + 1)
    ]
    for number, said in enumerate(cluster.run_all(jobs, timeout=800)):
        assert [one["first"] for one in said] == [2 * number] * 2
        assert [one["step"] for one in said] == [2 * (number + 1)] * 2
        assert said[0]["digest"] != said[1]["digest"]  # each has its own shards
    assert cluster.steps()[-1] == 2 * (times + 1)
