"""The files of a checkpoint, as any other program reads them."""

from __future__ import annotations

import json
import pickletools
import zipfile

import pytest
import safetensors
import safetensors.torch
import torch
from state_tools import Foreign, bits, tree_of

from bt_lightning import BTCheckpointIO
from bt_lightning.path_layout import LEFTOVERS, MANIFEST, STATE, TREE, WEIGHTS
from bt_lightning.session.serving_files import ServingFiles
from bt_lightning.snapshot.dtypes import SAFETENSORS

DTYPES = sorted(SAFETENSORS, key=str)


def _save(state, place, prefix=""):
    io = BTCheckpointIO()
    io.writer.serving = ServingFiles(weights_prefix=prefix)
    io.save_checkpoint(state, place)
    return io


def _header(file):
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return length, json.loads(data[8 : 8 + length])


def _typical():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return {
        "epoch": 1,
        "global_step": 7,
        "state_dict": model.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "hyper_parameters": {"lr": 0.1},
    }


def test_the_files_are_those_that_the_format_names(place):
    _save(_typical(), place)
    assert {path.name for path in place.iterdir()} == {MANIFEST, TREE, WEIGHTS, STATE}


def test_a_state_without_tensors_has_no_tensor_files(place):
    _save({"epoch": 1, "state_dict": {}}, place)
    assert {path.name for path in place.iterdir()} == {MANIFEST, TREE}


def test_the_weights_are_a_state_dict_for_the_safetensors_library(place):
    state = _typical()
    _save(state, place)
    found = safetensors.torch.load_file(place / WEIGHTS)
    assert set(found) == set(state["state_dict"])
    for name, tensor in state["state_dict"].items():
        assert bits(found[name]) == bits(tensor)
        assert found[name].dtype is tensor.dtype
        assert found[name].shape == tensor.shape


def test_the_optimizer_file_names_its_tensors_by_their_place_in_the_state(place):
    state = _typical()
    _save(state, place)
    with safetensors.safe_open(place / STATE, "pt") as file:
        names = set(file.keys())
        assert file.metadata() == {"format": "pt"}
        step = file.get_tensor("optimizer_states.0.state.0.exp_avg")
    expected = {
        f"optimizer_states.0.state.{index}.{name}"
        for index in range(4)
        for name in ("step", "exp_avg", "exp_avg_sq")
    }
    assert names == expected
    assert bits(step) == bits(state["optimizer_states"][0]["state"][0]["exp_avg"])


def test_a_prefix_is_cut_off_the_names_of_the_weights(place):
    state = {"state_dict": {"model.a": torch.ones(1), "model.": torch.ones(2), "b": torch.ones(3)}}
    io = _save(state, place, "model.")
    assert set(safetensors.torch.load_file(place / WEIGHTS)) == {"a"}
    assert set(safetensors.torch.load_file(place / STATE)) == {"state_dict.model.", "state_dict.b"}
    assert json.loads((place / MANIFEST).read_bytes())["weights_prefix"] == "model."
    assert list(io.load_checkpoint(place)["state_dict"]) == list(state["state_dict"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_library_reads_every_dtype_that_it_knows(dtype, place):
    tensor = torch.zeros(3, dtype=dtype) if dtype is torch.bool else None
    if tensor is None:
        tensor = torch.arange(3 * dtype.itemsize, dtype=torch.uint8).view(dtype)
    _save({"state_dict": {"w": tensor, "s": tensor[0], "e": tensor[:0]}}, place)
    found = safetensors.torch.load_file(place / WEIGHTS)
    assert found["w"].dtype is dtype
    assert bits(found["w"]) == bits(tensor)
    assert found["s"].shape == ()
    assert found["e"].shape == (0,)


def test_the_library_reads_odd_names(place):
    names = ["", "__metadata__", "a.b", "a b", "é😀", "\n", '"', "$", "x" * 10_000, "'", "\x00"]
    state = {"state_dict": {name: torch.ones(1) * i for i, name in enumerate(names)}}
    io = _save(state, place)
    assert len(safetensors.torch.load_file(place / WEIGHTS)) == len(names) - 1
    back = io.load_checkpoint(place)["state_dict"]
    assert {name: int(tensor) for name, tensor in back.items()} == {
        n: i for i, n in enumerate(names)
    }


def test_a_name_with_a_lone_surrogate_does_not_close_the_file_to_the_library(place):
    """JSON can carry one, but the library reads UTF-8 strictly and would refuse all of the file."""
    io = _save({"a\ud800": {"w": torch.ones(1)}, "b": torch.ones(2)}, place)
    assert set(io.load_checkpoint(place)) == {"a\ud800", "b"}
    assert len(safetensors.torch.load_file(place / STATE)) == 2


def test_names_that_collide_once_joined_stay_apart(place):
    one, two, three, four = (torch.full((2,), float(i)) for i in range(4))
    state = {"x": {"a.b": one, "a": {"b": two, "b'": three}}, "x.a": {"b": four}}
    io = _save(state, place)
    assert len(safetensors.torch.load_file(place / STATE)) == 4
    back = io.load_checkpoint(place)
    assert [int(back["x"]["a.b"][0]), int(back["x"]["a"]["b"][0])] == [0, 1]
    assert [int(back["x"]["a"]["b'"][0]), int(back["x.a"]["b"][0])] == [2, 3]


def test_keys_that_look_alike_as_text_keep_their_own_tensors(place):
    state = {
        "x": {1: torch.ones(1), "1": torch.ones(2), 1.0 + 1: torch.ones(3), (1,): torch.ones(4)}
    }
    back = _save(state, place).load_checkpoint(place)["x"]
    assert {key: len(tensor) for key, tensor in back.items()} == {1: 1, "1": 2, 2.0: 3, (1,): 4}


def test_tensors_begin_at_multiples_of_their_item_size_and_the_first_at_a_page(place):
    state = {
        "state_dict": {
            f"{index}.{str(dtype).rpartition('.')[2]}": torch.zeros(index % 5, dtype=dtype)
            for index, dtype in enumerate(DTYPES * 3)
        }
    }
    _save(state, place)
    length, header = _header(place / WEIGHTS)
    assert (8 + length) % 4096 == 0
    reached = 0
    for name, slot in header.items():
        if name == "__metadata__":
            continue
        dtype = getattr(torch, name.partition(".")[2])
        begin, end = slot["data_offsets"]
        assert begin == reached
        assert begin % dtype.itemsize == 0
        reached = end
    assert (place / WEIGHTS).stat().st_size == 8 + length + reached


def test_nothing_in_the_files_is_a_pickle_or_an_archive(place):
    _save(_typical(), place)
    for path in place.iterdir():
        assert not zipfile.is_zipfile(path)
        with pytest.raises((ValueError, IndexError)):
            list(pickletools.genops(path.read_bytes()))


def test_the_tree_is_plain_json_in_ascii(place):
    _save({"a": float("nan"), "b": [float("inf"), "é\ud800"], "c": {1: 2}}, place)

    def no_constants(name):
        raise AssertionError(name)

    document = json.loads((place / TREE).read_bytes().decode("ascii"), parse_constant=no_constants)
    assert set(document) == {"tree", "dropped"}


def test_the_manifest_says_what_the_checkpoint_is(place):
    _save(_typical(), place)
    manifest = json.loads((place / MANIFEST).read_bytes())
    assert (manifest["id"], manifest["step"], manifest["epoch"]) == (place.name, 7, 1)
    assert manifest["generation"] == 1
    assert manifest["resumable"] is True
    assert {entry["path"] for entry in manifest["files"]} == {TREE, WEIGHTS, STATE}
    assert manifest["origin"]["versions"]["torch"]


def test_values_stay_readable_for_people(place):
    _save(_typical(), place)
    tree = tree_of(place)
    assert tree["epoch"] == 1
    assert tree["hyper_parameters"] == {"lr": 0.1}


def test_leftovers_are_the_only_pickle(place):
    with pytest.warns(UserWarning, match=r"in leftovers\.pt: x \(state_tools\.Foreign\)"):
        BTCheckpointIO().save_checkpoint({"x": Foreign(1), "y": torch.ones(2)}, place)
    assert [path.name for path in place.iterdir() if zipfile.is_zipfile(path)] == [LEFTOVERS]
