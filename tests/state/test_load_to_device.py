"""Tensors that come to a device through buffers are those that come to the host."""

from __future__ import annotations

import gc
import json

import numpy as np
import pytest
import torch
from state_tools import same

from bt_lightning import BTCheckpointIO, CheckpointCorruptError
from bt_lightning.file_entries import BLOCK_BYTES
from bt_lightning.path_layout import STATE, TREE, WEIGHTS
from bt_lightning.restore.decode_tree import names_needed_on_host
from bt_lightning.restore.load_to_device import HOST, DeviceMemory
from bt_lightning.restore.read_tensors import read_tensors
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.transfer.checkpoint_reader import StoreReader
from bt_lightning.store.transfer.files_reader import DirectoryReader

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
    """A checkpoint of two files, in both kinds of places."""
    state = {"state_dict": _weights(), "moments": torch.arange(BLOCK_BYTES)}
    BTCheckpointIO().save_checkpoint(state, tmp_path / "checkpoint-1")
    if request.param == "store":
        yield StoreReader(LocalStore(tmp_path), "", "checkpoint-1")
    else:
        with DirectoryReader(tmp_path / "checkpoint-1") as place:
            yield place


def _entries(place):
    named = {"weights": place.manifest.entry(WEIGHTS), "state": place.manifest.entry(STATE)}
    return {label: entry for label, entry in named.items() if entry}


def _each(files):
    for label, tensors in files.items():
        for name, tensor in tensors.items():
            yield label, name, tensor


def _same_bytes(one, other):
    flat = [tensor.cpu().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    assert torch.equal(*flat)


@pytest.mark.parametrize("device", DEVICES)
def test_every_tensor_arrives_as_on_the_host(device, weights):
    entries = _entries(weights)
    wanted = read_tensors(weights, entries, HOST)
    found = read_tensors(weights, entries, DeviceMemory(torch.device(device)))
    assert wanted["weights"].keys() == found["weights"].keys() >= _weights().keys()
    assert wanted["state"].keys() == found["state"].keys()
    for label, name, tensor in _each(wanted):
        there = found[label][name]
        assert there.device.type == device
        assert (there.dtype, there.shape) == (tensor.dtype, tensor.shape)
        _same_bytes(there, tensor)


@pytest.mark.parametrize("device", DEVICES)
def test_a_flipped_bit_is_found_on_its_way_to_a_device(device, tmp_path):
    BTCheckpointIO().save_checkpoint({"state_dict": _weights()}, tmp_path / "checkpoint-1")
    file = tmp_path / "checkpoint-1" / WEIGHTS
    with file.open("r+b") as stream:
        stream.seek(-5, 2)
        byte = stream.read(1)
        stream.seek(-5, 2)
        stream.write(bytes([byte[0] ^ 1]))
    home = DeviceMemory(torch.device(device))
    with DirectoryReader(tmp_path / "checkpoint-1") as place:
        entries = {"weights": place.manifest.entry(WEIGHTS)}
        with pytest.raises(CheckpointCorruptError):
            read_tensors(place, entries, home)


@pytest.mark.parametrize("device", DEVICES)
def test_tensors_that_are_wanted_on_the_host_stay_there(device, weights):
    entries = _entries(weights)
    wanted = read_tensors(weights, entries, HOST)
    held = {("weights", name) for name in list(wanted["weights"])[::2]}
    found = read_tensors(weights, entries, DeviceMemory(torch.device(device)), held)
    for label, name, tensor in _each(wanted):
        there = found[label][name]
        assert there.device.type == ("cpu" if (label, name) in held else device)
        _same_bytes(there, tensor)


def test_arrays_and_parts_of_sparse_tensors_are_wanted_on_the_host(tmp_path):
    state = {
        "array": np.arange(5),
        "sparse": [torch.eye(3).to_sparse()],
        "dense": torch.ones(2),
        "nested": {"arrays": (np.ones(3), torch.zeros(1))},
    }
    BTCheckpointIO().save_checkpoint(state, tmp_path / "checkpoint-1")
    tree = json.loads((tmp_path / "checkpoint-1" / TREE).read_text())["tree"]
    with DirectoryReader(tmp_path / "checkpoint-1") as place:
        every = {(label, name) for label, name, _ in _each(read_tensors(place, _entries(place)))}
    held = names_needed_on_host(tree)
    assert len(every) == 6
    assert held < every
    assert len(held) == 4


@pytest.mark.parametrize("kind", ["meta", "inference"])
@pytest.mark.parametrize("home", [HOST, DeviceMemory(torch.device("cpu"))], ids=["host", "buffers"])
def test_what_the_caller_set_for_new_tensors_changes_none(kind, home, weights):
    entries = _entries(weights)
    wanted = read_tensors(weights, entries)
    with torch.device("meta") if kind == "meta" else torch.inference_mode():
        found = read_tensors(weights, entries, home)
    for label, name, tensor in _each(wanted):
        _same_bytes(found[label][name], tensor)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_default_device_of_the_caller_s_is_not_where_a_state_goes(place):
    state = {
        "dense": torch.ones(3),
        "none": torch.empty(0),
        "array": np.arange(3),
        "coo": torch.eye(3).to_sparse(),
        "csr": torch.eye(3).to_sparse_csr(),
    }
    with torch.device("meta"):
        BTCheckpointIO().save_checkpoint(state, place)
        back = BTCheckpointIO().load_checkpoint(place)
    same(state, back)


@pytest.mark.gpu
@pytest.mark.parametrize("own_stream", [False, True], ids=["default stream", "another stream"])
def test_memory_that_a_stream_still_works_on_is_not_written_early(own_stream, weights):
    """The allocator hands out what was given back while kernels that use it still wait."""
    entries = _entries(weights)
    wanted = read_tensors(weights, entries, HOST)
    stream = torch.cuda.Stream() if own_stream else torch.cuda.current_stream()
    for busy in (stream, torch.cuda.default_stream()):
        with torch.cuda.stream(busy):
            held = [torch.empty_like(tensor, device="cuda") for _, _, tensor in _each(wanted)]
            torch.cuda._sleep(int(0.5 * 1.5e9))
            for tensor in held:
                tensor.zero_()
            del held, tensor
    gc.collect()
    with torch.cuda.stream(stream):
        found = read_tensors(weights, entries, DeviceMemory(torch.device("cuda")))
    torch.cuda.synchronize()
    for label, name, tensor in _each(wanted):
        _same_bytes(found[label][name], tensor)
