"""The saver, its threads and a real worker, on a device that does its work in random orders."""

from __future__ import annotations

import pytest
import torch
from happens_before import RandomOrders
from safetensors.torch import load_file
from simulated_device import SimulatedDevice

from bt_lightning.localdir.list_and_verify_checkpoints import verify
from bt_lightning.session.folder_writer import Folder, FolderWriter
from bt_lightning.snapshot.folder_files import SafetensorsFile

SIZES = ((40, 3), (5,), (), (7, 2))


@pytest.fixture
def device(monkeypatch):
    found = SimulatedDevice(RandomOrders(2), of_real_threads=True)
    found.install(monkeypatch)
    with found:
        yield found


class Job:
    """A module whose weights, momentum and counts are those of the step, by SGD of torch."""

    def __init__(self, device) -> None:
        self._device = device
        self.module = torch.nn.ParameterList(device.full(size, 0.0) for size in SIZES)
        self.module.register_buffer("seen", device.full((9,), 0.0))
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=1.0, momentum=1.0)
        self.values = {"weights": 0.0, "momentum": 0.0, "seen": 0.0}

    def train(self):
        for parameter in self.module.parameters():
            (parameter.detach() * 2).add_(1)
            parameter.grad = self._device.full(parameter.shape, -1.0)
        self.module.seen += 1
        self.optimizer.step()
        momentum = self.values["momentum"] - 1
        weights, seen = self.values["weights"] - momentum, self.values["seen"] + 1
        self.values = {"weights": weights, "momentum": momentum, "seen": seen}

    def folder(self, step):
        weights = self.module.state_dict()
        state = {str(i): s["momentum_buffer"] for i, s in enumerate(self.optimizer.state.values())}
        files = {
            "weights.safetensors": SafetensorsFile(weights),
            "momentum.safetensors": SafetensorsFile(state),
        }
        return Folder(files=files, step=step)


def _values(file):
    return {name: float(value.unique()) for name, value in load_file(file).items()}


@pytest.mark.parametrize(("snapshot", "room"), [("lazy", True), ("lazy", False), ("eager", True)])
def test_what_is_committed_is_of_one_step(saving, device, room, snapshot):
    device.free_bytes = 2**40 if room else 0
    job, writer = Job(device), FolderWriter()
    saver = saving([job.optimizer], snapshot=snapshot)
    for step in range(1, 13):
        job.train()
        folder, wanted = job.folder(step), job.values
        record = saver.saver.save(
            "checkpoint-1",
            lambda cache, folder=folder: writer.take(folder, cache),
            lambda snapshot, folder=folder: writer.facts(folder, snapshot),
        )
        job.train()
        ((_, manifest),) = saver.outcomes()
        assert manifest.step == step
        assert record.snapshot == ("clone" if room or snapshot == "eager" else "lazy")
        verify(saver.root / "checkpoint-1")
        weights = _values(saver.root / "checkpoint-1" / "weights.safetensors")
        momentum = _values(saver.root / "checkpoint-1" / "momentum.safetensors")
        assert weights.pop("seen") == wanted["seen"]
        assert set(weights.values()) == {wanted["weights"]}
        assert set(momentum.values()) == {wanted["momentum"]}
        assert len(weights) == len(momentum) == len(SIZES)


def test_a_step_on_another_stream_waits_for_the_copies_as_the_first_did(
    saving, device, slow_copies
):
    """That stream waited for the one of the save, before any step; two optimizers, as of a GAN."""
    device.free_bytes = 0
    one, other = Job(device), Job(device)
    saver, writer = saving([one.optimizer, other.optimizer], snapshot="lazy"), FolderWriter()
    side = device.new_stream()
    for step in range(1, 13):
        one.train()
        with device.on_stream(side):
            other.train()
        device.default_stream().wait_stream(side)
        files = {
            "one.safetensors": SafetensorsFile(dict(one.module.named_parameters())),
            "other.safetensors": SafetensorsFile(dict(other.module.named_parameters())),
        }
        folder, wanted = Folder(files=files, step=step), one.values["weights"]
        with slow_copies() as let_copies_begin:
            saver.saver.save(
                "checkpoint-1",
                lambda cache, folder=folder: writer.take(folder, cache),
                lambda snapshot, folder=folder: writer.facts(folder, snapshot),
            )
            side.wait_stream(device.default_stream())
            one.train()
            with device.on_stream(side):
                other.train()
            let_copies_begin()
            ((_, manifest),) = saver.outcomes()
        assert manifest.step == step
        for name in files:
            assert set(_values(saver.root / "checkpoint-1" / name).values()) == {wanted}
        device.default_stream().wait_stream(side)
