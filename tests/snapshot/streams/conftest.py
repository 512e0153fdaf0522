"""Makes the simulator importable."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
if str(_HERE) not in sys.path:
    sys.path.insert(0, str(_HERE))  # for `simulated_device` and its like, which are no tests


@pytest.fixture
def run(monkeypatch):
    """Run a scenario once; its conflicts, and what was torn or waited for, if anything."""
    from scenarios import HostWaitError, TornError
    from simulated_device import SimulatedDevice

    def once(scenario, choices):
        act, options = scenario
        device = SimulatedDevice(choices)
        device.install(monkeypatch)
        try:
            act(device, **options)
        except (TornError, HostWaitError) as error:
            return device.orders.conflicts, error
        return device.orders.conflicts, None

    return once


@pytest.fixture
def ranks_of_no_machine():
    """A process group of four ranks, of which this process is one; nothing is sent."""
    pytest.importorskip("torch.distributed.tensor")  # public since torch 2.5
    import torch.distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=4)
    yield
    torch.distributed.destroy_process_group()
