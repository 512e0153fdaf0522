"""No order that events and waits allow tears a snapshot or a load, on a simulated device."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from happens_before import EveryOrder, RandomOrders
from scenarios import SCENARIOS, SHARDED, SMALL, Training, arena_of
from simulated_device import CUDA, SimulatedDevice

import bt_lightning

SEEDS = range(15)


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_torn_in_random_orders(run, name):
    for seed in SEEDS:
        assert run(SCENARIOS[name], RandomOrders(seed)) == ([], None), f"seed {seed}"


@pytest.mark.parametrize("name", SMALL)
def test_nothing_is_torn_in_any_order(run, name):
    choices, orders = EveryOrder(), 0
    while True:
        assert run(SMALL[name], choices) == ([], None), f"order {orders}"
        orders += 1
        if not choices.advance():
            break
    assert orders < 1000, "too many: such a scenario is one for random orders"


@pytest.mark.usefixtures("ranks_of_no_machine")
@pytest.mark.parametrize("name", SHARDED)
def test_shards_are_not_torn_either(run, name):
    for seed in SEEDS:
        assert run(SHARDED[name], RandomOrders(seed)) == ([], None), f"seed {seed}"


@pytest.mark.usefixtures("ranks_of_no_machine")
@pytest.mark.parametrize("sharded", [False, True])
def test_a_write_that_no_guard_held_back_is_refused(monkeypatch, sharded):
    """A hook that changes weights: of a DTensor, its part counts no writes."""
    device = SimulatedDevice(RandomOrders(0))
    device.install(monkeypatch)
    device.free_bytes = 0
    with device, Training(device, sharded=sharded) as job, arena_of() as arena:
        job.train()
        capture = job.save(arena)
        with torch.no_grad():
            job.weights[0].add_(1)
        assert job.finish(capture) is None
        assert capture.torn


class TestTheSimulator:
    """It finds what is wrong in programs of two streams, and nothing where nothing is."""

    def job(self, seed, program):
        device = SimulatedDevice(RandomOrders(seed))
        with device:
            host = torch.zeros(4)
            weight = device.full((4,), 1.0)
            side = device.new_stream()
            program(device, weight, side, host)
            device.orders.finish()
        return device.orders.conflicts, host.tolist()

    @staticmethod
    def copy(device, weight, side, host):
        with device.on_stream(side):
            host.copy_(weight, non_blocking=True)

    def test_streams_that_wait_for_each_other(self):
        def program(device, weight, side, host):
            side.wait_stream(device.default_stream())
            self.copy(device, weight, side, host)
            device.default_stream().wait_stream(side)
            weight.add_(1)

        assert {str(self.job(seed, program)) for seed in SEEDS} == {str(([], [1.0] * 4))}

    def test_an_event_that_was_recorded_too_early(self):
        def program(device, weight, side, host):
            event = device.new_event()
            event.record(device.default_stream())
            weight.add_(1)
            side.wait_event(event)
            self.copy(device, weight, side, host)

        ends = [self.job(seed, program) for seed in SEEDS]
        assert {tuple(found) for _, found in ends} == {(1.0,) * 4, (2.0,) * 4}
        assert all("unordered accesses" in conflicts[0] for conflicts, _ in ends)

    def test_memory_that_is_handed_out_while_a_copy_reads_it(self):
        def program(device, weight, side, host):
            clone = weight.clone()
            side.wait_stream(device.default_stream())
            self.copy(device, clone, side, host)
            del clone
            device.full((4,), 9.0)

        ends = [self.job(seed, program) for seed in SEEDS]
        assert {tuple(found) for _, found in ends} == {(1.0,) * 4, (9.0,) * 4}
        assert all("use after free" in conflicts[0] for conflicts, _ in ends)

    def test_a_host_that_reads_before_the_copy_is_done(self):
        def program(device, weight, side, host):
            side.wait_stream(device.default_stream())
            self.copy(device, weight, side, host)
            seen = device.orders.on_host("look", lambda: host.sum().item())
            host.fill_(seen)

        assert len({str(self.job(seed, program)) for seed in SEEDS}) > 1

    def test_every_order_of_two_streams_is_run_once(self):
        choices, seen = EveryOrder(), []
        while True:
            device, done = SimulatedDevice(choices), []
            for stream, count in ((device.default_stream(), 2), (device.new_stream(), 3)):
                for number in range(count):
                    act = functools.partial(done.append, (stream.name, number))
                    device.orders.enqueue(stream, "work", act)
            device.orders.finish()
            seen.append(tuple(done))
            if not choices.advance():
                break
        assert len(seen) == len(set(seen)) == 10  # 5 over 2

    def test_memory_goes_to_the_stream_that_it_was_allocated_for(self):
        device = SimulatedDevice(RandomOrders(0))
        with device:
            first = device.empty((4,))
            address = first.data_ptr()
            del first
            with device.on_stream(device.new_stream()):
                assert device.empty((4,)).data_ptr() != address
            assert device.empty((3,)).data_ptr() == address
        assert device.empty((1,)).device == CUDA


def test_only_one_module_has_streams_events_and_pinned_memory():
    """Otherwise the orders above are not those of the code."""
    root = Path(bt_lightning.__file__).parent
    names = ("torch.cuda", "torch.Stream", "torch.Event", "torch.accelerator", "pin_memory=")
    found = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if any(name in path.read_text() for name in names)
    }
    assert found == {"snapshot/device_streams.py", "session/random_generators.py"}
