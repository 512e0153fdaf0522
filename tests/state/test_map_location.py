"""`map_location` means what it means to `torch.load`; meta stands in for a second device."""

from __future__ import annotations

from collections import OrderedDict, deque

import pytest
import torch
from state_tools import ALLOWED, Foreign, Frozen, Pair, Plain, same

from bt_lightning import BTCheckpointIO
from bt_lightning.errors import InvalidSettingError

TO_META = {
    "text": "meta",
    "device": torch.device("meta"),
    "dict": {"cpu": "meta"},
    "function": lambda storage, _: torch.empty(0, device="meta").untyped_storage(),
}
STAYS = {
    "none": None,
    "text": "cpu",
    "device": torch.device("cpu"),
    "dict of other devices": {"cuda:0": "cpu"},
    "empty dict": {},
    "dict": {"cpu": "cpu"},
    "function": lambda storage, _: storage,
    "function that does not care": lambda storage, _: None,
}


def _state():
    shared = torch.ones(3)
    return {
        "tensor": torch.ones(2),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "frozen": torch.nn.Parameter(torch.ones(2), requires_grad=False),
        "leaf": torch.ones(2, requires_grad=True),
        "bytes": torch.ones(2, dtype=torch.float8_e4m3fnuz),
        "nested": OrderedDict(a=[(torch.ones(1),)], b=deque([torch.ones(1)])),
        "objects": [Frozen(1, Plain(torch.ones(1))), Pair(1, torch.ones(1))],
        "tied": [shared, shared],
    }


def _tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple | deque):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "__dict__"):
        yield from _tensors(vars(value))


@pytest.fixture
def saved(place):
    BTCheckpointIO(ALLOWED).save_checkpoint(_state(), place)
    return place


@pytest.mark.parametrize("name", TO_META)
def test_every_tensor_goes_where_it_is_sent(name, saved):
    back = BTCheckpointIO(ALLOWED).load_checkpoint(saved, map_location=TO_META[name])
    found = list(_tensors(back))
    assert len(found) == 11
    assert all(tensor.is_meta for tensor in found)
    assert all(tensor.is_leaf for tensor in found)
    assert type(back["parameter"]) is torch.nn.Parameter
    assert back["parameter"].requires_grad
    assert type(back["frozen"]) is torch.nn.Parameter
    assert not back["frozen"].requires_grad
    assert back["leaf"].requires_grad
    assert back["tied"][0] is back["tied"][1]
    assert back["bytes"].dtype is torch.float8_e4m3fnuz


@pytest.mark.parametrize("name", STAYS)
def test_a_tensor_that_is_sent_nowhere_stays_on_the_cpu(name, saved):
    same(_state(), BTCheckpointIO(ALLOWED).load_checkpoint(saved, map_location=STAYS[name]))


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("name", STAYS)
def test_sparse_tensors_take_any_kind_of_location(name, place):
    state = {"coo": torch.eye(3).to_sparse(), "csr": torch.eye(3).to_sparse_csr()}
    BTCheckpointIO().save_checkpoint(state, place)
    same(state, BTCheckpointIO().load_checkpoint(place, map_location=STAYS[name]))


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_tensors_go_where_they_are_sent(place):
    state = {"coo": torch.eye(3).to_sparse(), "csr": torch.eye(3).to_sparse_csr()}
    BTCheckpointIO().save_checkpoint(state, place)
    back = BTCheckpointIO().load_checkpoint(place, map_location="meta")
    assert back["coo"].is_meta
    assert back["csr"].is_meta


@pytest.mark.filterwarnings("ignore:saved with pickle")
def test_tensors_in_leftovers_go_along(place):
    BTCheckpointIO().save_checkpoint({"x": Foreign(torch.ones(2))}, place)
    back = BTCheckpointIO().load_checkpoint(place, map_location="meta", weights_only=False)
    assert back["x"].value.is_meta


def test_a_model_loads_from_a_checkpoint_on_another_device(place):
    model = torch.nn.Linear(2, 2)
    BTCheckpointIO().save_checkpoint({"state_dict": model.state_dict()}, place)
    back = BTCheckpointIO().load_checkpoint(place, map_location="meta")
    other = torch.nn.Linear(2, 2, device="meta")
    other.load_state_dict(back["state_dict"], assign=True)
    assert other.weight.is_meta


def test_arrays_of_numpy_stay_arrays(place):
    import numpy as np

    BTCheckpointIO().save_checkpoint({"x": np.arange(3)}, place)
    back = BTCheckpointIO().load_checkpoint(place, map_location="meta")
    assert back["x"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "location", ["cuda:99", torch.device("cuda:99"), {"cpu": "cuda:99"}, "nowhere"], ids=str
)
def test_a_device_that_is_not_there_is_no_damage_to_the_checkpoint(location, saved):
    with pytest.raises(InvalidSettingError, match=r"map_location is '(cuda:99|nowhere)'"):
        BTCheckpointIO(ALLOWED).load_checkpoint(saved, map_location=location)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "location",
    ["cuda", {"cpu": "cuda:0"}, lambda storage, _: storage.cuda()],
    ids=["text", "dict", "function"],
)
def test_tensors_go_to_a_gpu_and_come_from_one(location, place):
    state = {"a": torch.ones(3, device="cuda"), "b": torch.ones(2, device="cuda").t()}
    BTCheckpointIO().save_checkpoint(state, place)
    assert BTCheckpointIO().load_checkpoint(place)["a"].device.type == "cpu"
    assert BTCheckpointIO().load_checkpoint(place, map_location=location)["b"].is_cuda


@pytest.mark.gpu
def test_what_a_gpu_gets_is_what_was_saved(saved):
    """In every form: sparse tensors are made on the host, arrays of numpy stay there."""
    back = BTCheckpointIO(ALLOWED).load_checkpoint(saved, map_location="cuda")
    found = list(_tensors(back))
    assert len(found) == 11
    assert all(tensor.is_cuda and tensor.is_leaf for tensor in found)
    assert back["tied"][0] is back["tied"][1]
    for ours, there in zip(_tensors(_state()), found, strict=True):
        assert torch.equal(ours.view(torch.uint8), there.cpu().view(torch.uint8))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Sparse")
def test_what_is_made_of_parts_on_the_host_goes_to_a_gpu_as_well(place):
    import numpy as np

    state = {"coo": torch.eye(3).to_sparse(), "csr": torch.eye(3).to_sparse_csr(), "n": np.eye(3)}
    BTCheckpointIO().save_checkpoint(state, place)
    back = BTCheckpointIO().load_checkpoint(place, map_location="cuda")
    assert back["coo"].is_cuda
    assert back["csr"].is_cuda
    assert torch.equal(back["coo"].to_dense().cpu(), torch.eye(3))
    assert back["n"].tolist() == np.eye(3).tolist()
