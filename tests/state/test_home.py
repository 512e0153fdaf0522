"""Tensors that come to a device through buffers are those that come to the host."""

from __future__ import annotations

import gc

import pytest
import torch

from bt_lightning import BTCheckpointIO, CheckpointCorruptError
from bt_lightning.layout import WEIGHTS
from bt_lightning.manifest import BLOCK_BYTES
from bt_lightning.restore.home import HOST, Device
from bt_lightning.restore.read import read_tensors
from bt_lightning.store.local import LocalStore
from bt_lightning.store.place import DirectoryPlace, StorePlace

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def _weights():
    """Of every size next to the edges that a range, a block or a mapping has."""
    torch.manual_seed(1)
    sizes = [1, 3, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 9 * BLOCK_BYTES + 7]
    state = {f"bytes {size}": torch.randint(0, 256, (size,), dtype=torch.uint8) for size in sizes}
    for dtype in (torch.bfloat16, torch.float64, torch.complex64, torch.bool, torch.float8_e5m2):
        state[str(dtype)] = torch.randint(0, 2, (3, 5)).to(dtype)
    state["of no axis"] = torch.tensor(4.5)
    state["of no item"] = torch.empty(0, 3)
    return state


@pytest.fixture(params=["directory", "store"])
def weights(request, tmp_path):
    """A checkpoint, in both kinds of places."""
    BTCheckpointIO().save_checkpoint({"state_dict": _weights()}, tmp_path / "checkpoint-1")
    if request.param == "store":
        yield StorePlace(LocalStore(tmp_path), "", "checkpoint-1")
    else:
        with DirectoryPlace(tmp_path / "checkpoint-1") as place:
            yield place


@pytest.mark.parametrize("device", DEVICES)
def test_every_tensor_arrives_as_on_the_host(device, weights):
    entries = {"weights": weights.manifest.entry(WEIGHTS)}
    wanted = read_tensors(weights, entries, HOST)["weights"]
    found = read_tensors(weights, entries, Device(torch.device(device)))["weights"]
    assert wanted.keys() == found.keys() >= _weights().keys()
    for name, tensor in wanted.items():
        there = found[name]
        assert there.device.type == device
        assert (there.dtype, there.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(
            there.cpu().reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)
        )


@pytest.mark.parametrize("device", DEVICES)
def test_a_flipped_bit_is_found_on_its_way_to_a_device(device, tmp_path):
    BTCheckpointIO().save_checkpoint({"state_dict": _weights()}, tmp_path / "checkpoint-1")
    file = tmp_path / "checkpoint-1" / WEIGHTS
    with file.open("r+b") as stream:
        stream.seek(-5, 2)
        byte = stream.read(1)
        stream.seek(-5, 2)
        stream.write(bytes([byte[0] ^ 1]))
    home = Device(torch.device(device))
    with DirectoryPlace(tmp_path / "checkpoint-1") as place:
        entries = {"weights": place.manifest.entry(WEIGHTS)}
        with pytest.raises(CheckpointCorruptError):
            read_tensors(place, entries, home)


@pytest.mark.gpu
@pytest.mark.parametrize("own_stream", [False, True], ids=["default stream", "another stream"])
def test_memory_that_a_stream_still_works_on_is_not_written_early(own_stream, weights):
    """The allocator hands out what was given back while kernels that use it still wait."""
    entries = {"weights": weights.manifest.entry(WEIGHTS)}
    wanted = read_tensors(weights, entries, HOST)["weights"]
    stream = torch.cuda.Stream() if own_stream else torch.cuda.current_stream()
    with torch.cuda.stream(stream):
        held = {name: torch.empty_like(tensor, device="cuda") for name, tensor in wanted.items()}
        torch.cuda._sleep(int(0.5 * 1.5e9))
        for tensor in held.values():
            tensor.zero_()
        del held, tensor
        gc.collect()
        found = read_tensors(weights, entries, Device(torch.device("cuda")))["weights"]
    torch.cuda.synchronize()
    for name, tensor in wanted.items():
        assert torch.equal(
            found[name].cpu().reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)
        )
