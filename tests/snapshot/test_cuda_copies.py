"""Snapshots of a state on a CUDA device: of one step, whatever the streams, without a host wait."""

from __future__ import annotations

import copy
import random

import pytest
import torch

from bt_lightning.session.folder_writer import Folder, FolderWriter
from bt_lightning.snapshot import cuda_copies
from bt_lightning.snapshot.device_sources import CopySource
from bt_lightning.snapshot.folder_files import SafetensorsFile, TorchFile

pytestmark = pytest.mark.gpu


def busy(seconds=0.2):
    """Keep the current stream of the device busy."""
    torch.cuda._sleep(int(seconds * 1.5e9))


def test_a_tensor_larger_than_what_is_pinned_at_a_time_arrives(saving, checkpoint_of, monkeypatch):
    monkeypatch.setattr(cuda_copies, "_PIN_STEP", 1024 * 1024)
    module = torch.nn.ParameterList([torch.randn(3 * 2**20 + 5, device="cuda") for _ in range(3)])
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    saver = saving([optimizer])
    saver.save(checkpoint_of(module, [optimizer], 1), "checkpoint-1")
    saver.outcomes()
    found = saver.tensors("checkpoint-1")
    assert all(torch.equal(found[str(i)], weight.cpu()) for i, weight in enumerate(module))


@pytest.mark.parametrize("room", [True, False], ids=["clone", "guard"])
@pytest.mark.parametrize("own_stream", [False, True], ids=["default stream", "another stream"])
def test_every_snapshot_is_of_one_step(
    saving, counting, checkpoint_of, monkeypatch, room, own_stream
):
    monkeypatch.setattr(cuda_copies.DeviceCopies, "_has_room", lambda *_: room)
    module = counting.cuda()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1.0)
    saver = saving([optimizer], snapshot="lazy")
    stream = torch.cuda.Stream() if own_stream else torch.cuda.current_stream()
    chance = random.Random(1)
    with torch.cuda.stream(stream):
        for number in range(60):
            for weight in module.parameters():
                weight.grad = torch.full_like(weight, -chance.random())
            optimizer.step()
            busy(0.01)
            checkpoint = checkpoint_of(module, [optimizer], number)
            wanted = {name: tensor.clone() for name, tensor in checkpoint["state_dict"].items()}
            record = saver.save(checkpoint, "checkpoint-1")
            module(torch.zeros(1))
            optimizer.step()
            torch.cuda.synchronize()
            ((_, manifest),) = saver.outcomes()
            assert record.snapshot == ("clone" if room else "lazy")
            assert manifest.step == number
            found = saver.tensors("checkpoint-1")
            for name, tensor in wanted.items():
                assert torch.equal(found[name], tensor.cpu()), f"{name} of save {number}"


def test_neither_the_save_nor_the_guard_waits_for_the_device(
    saving, counting, checkpoint_of, monkeypatch
):
    monkeypatch.setattr(cuda_copies.DeviceCopies, "_has_room", lambda *_: False)
    module = counting.cuda()
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    for weight in module.parameters():
        weight.grad = torch.ones_like(weight)
    saver = saving([optimizer], snapshot="lazy")
    saver.save(checkpoint_of(module, [optimizer], 1), "checkpoint-1")
    saver.outcomes()
    busy(3.0)
    ended = torch.cuda.Event()
    saver.save({"state_dict": module.state_dict(), "global_step": 2}, "checkpoint-2")
    optimizer.step()
    ended.record()
    assert not ended.query(), "the host came back only when the device was done"
    saver.outcomes()


def test_small_tensors_come_down_in_one_copy():
    tensors = [torch.zeros(100, device="cuda") for _ in range(50)]
    sources = [CopySource(400 * index, tensor, True) for index, tensor in enumerate(tensors)]
    sources.append(CopySource(400 * 50 + 8, torch.zeros(3, device="cuda"), True))
    sources.append(CopySource(2**20, torch.zeros(2**20, device="cuda"), True))
    assert [len(run) for run in cuda_copies._runs(sources)] == [50, 1, 1]


def test_pinned_memory_is_used_and_given_back(tmp_path):
    from bt_lightning.snapshot.arena import Arena

    arena = Arena(0, 64 * 2**20)
    arena.touch(0, arena.size)
    pins = cuda_copies.PinnedArenas(torch.device("cuda", torch.cuda.current_device()))
    pins.pin(arena)
    assert arena.memory.is_pinned()
    pins.unpin(arena)
    arena.close()


@pytest.mark.parametrize("room", [True, False], ids=["clone", "guard"])
def test_a_folder_is_of_one_step_and_whole(saving, counting, monkeypatch, room):
    monkeypatch.setattr(cuda_copies.DeviceCopies, "_has_room", lambda *_: room)
    module = counting.cuda()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1.0, fused=True)
    saver, writer = saving([optimizer], snapshot="lazy"), FolderWriter()
    for number in range(8):
        for weight in module.parameters():
            weight.grad = torch.full_like(weight, -1.0)
        optimizer.step()
        busy(0.01)
        files = {
            "model.safetensors": SafetensorsFile(module.state_dict()),
            "optimizer.pt": TorchFile(optimizer.state_dict()),
        }
        folder = Folder(files=files, step=number)
        wanted = copy.deepcopy(optimizer.state_dict())
        saver.saver.save(
            "checkpoint-1",
            lambda cache, folder=folder: writer.take(folder, cache),
            lambda snapshot, folder=folder: writer.facts(folder, snapshot),
        )
        optimizer.step()
        ((_, manifest),) = saver.outcomes()
        assert manifest.step == number
        back = torch.load(saver.root / "checkpoint-1" / "optimizer.pt", weights_only=True)
        torch.testing.assert_close(back, wanted, rtol=0, atol=0)
