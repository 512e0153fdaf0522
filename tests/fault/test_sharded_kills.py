"""SIGKILL of ranks, workers, or all, in saves of trainings whose ranks hold parts of the model."""

from __future__ import annotations

import pytest

from tests.fault.sharded_kills import torture

pytestmark = pytest.mark.matrix


@pytest.mark.timeout(300)
def test_a_sharded_training_killed_in_its_saves_ends_as_if_it_had_not_been(fork_server, tmp_path):
    assert torture(fork_server, tmp_path, "fsdp", seed=1, kills=3).kills.total() == 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("seed", "kind", "layout"),
    [
        (11, "fsdp", {}),
        (12, "fsdp on 4", {}),
        (13, "mesh", {}),
        (14, "hsdp", {"keep": 2}),
        (15, "fsdp1", {}),
        (16, "fsdp", {"stored": True}),
        (17, "fsdp1", {"keep": 2, "stored": True}),
        (18, "fsdp", {"keep": 2}),
    ],
)
def test_two_hundred_kills_lose_nothing(fork_server, tmp_path, seed, kind, layout):
    figures = torture(fork_server, tmp_path, kind, seed=seed, kills=25, **layout)
    assert figures.kills.total() == 25


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [21, 22])
def test_nodes_that_lose_a_disk_go_on_from_one_step(fork_server, tmp_path, seed):
    figures = torture(fork_server, tmp_path, "fsdp", seed=seed, kills=35, nodes=True)
    assert figures.disks >= 25
