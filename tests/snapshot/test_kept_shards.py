"""What is kept of a sharded state from save to save is what the state has, whatever changed it."""

from __future__ import annotations

import json

import pytest
import torch

from bt_lightning.errors import UnsupportedStateError
from bt_lightning.session.ranks import Ranks
from bt_lightning.session.shard_exchange import ShardExchange
from bt_lightning.session.shard_writer import ShardWriter
from bt_lightning.snapshot.local_shards import live_state
from bt_lightning.snapshot.state_files import EncodingCache

SHARD = "shard-00000-of-00001.safetensors"


@pytest.fixture
def save():
    """Lays out weights as a save does; returns the shard file's header, and name -> bytes."""
    exchange = ShardExchange(Ranks(), lambda: 0)
    writer, cache = ShardWriter(exchange), EncodingCache()

    def saved(weights):
        snapshot = writer.take({"state_dict": weights, "optimizer_states": []}, cache)
        content = b"".join(snapshot.files[SHARD]())
        length = int.from_bytes(content[:8], "little")
        header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
        names = header.keys() - {"__metadata__"}
        bytes_of = {name: data[slice(*header[name]["data_offsets"])] for name in names}
        return header, {name.removeprefix("state_dict."): each for name, each in bytes_of.items()}

    yield saved
    exchange.close()


def raw(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", [torch.complex128, torch.float8_e4m3fnuz])
def test_items_that_no_file_has_are_those_of_each_save(save, dtype):
    """They are stored as bytes: of a tensor that is not contiguous, of a copy."""
    weight = torch.nn.Parameter(torch.randn(4, 3).to(dtype).t(), requires_grad=False)
    weights = {"odd": weight, "plain": torch.nn.Parameter(torch.ones(3))}
    for number in range(1, 4):
        weight.copy_(torch.full((3, 4), float(number)).to(dtype))
        assert save(weights)[1] == {name: raw(each) for name, each in weights.items()}


@pytest.mark.parametrize("form", [torch.Size([2, 3]), torch.float16])
def test_a_shape_or_a_dtype_that_changes_in_place_is_seen(save, form):
    weight = torch.nn.Parameter(torch.arange(6.0).bfloat16())
    weights = {"odd": weight}
    save(weights)
    weight.data = weight.data.view(form)
    row = save(weights)[0]["state_dict.odd"]
    assert row["shape"] == list(weight.shape)
    assert row["dtype"] == ("F16" if weight.dtype == torch.float16 else "BF16")


def test_a_state_under_a_key_that_is_no_parameter_is_refused_by_name():
    module = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    optimizer.state["rounds"] = {"count": 1}
    with pytest.raises(UnsupportedStateError, match="'rounds', which is no parameter"):
        live_state(module, [optimizer])


def test_a_state_that_is_no_dict_is_saved(save):
    module = torch.nn.Linear(2, 2, bias=False)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    optimizer.state[module.weight] = torch.ones(2)
    exchange = ShardExchange(Ranks(), lambda: 0)
    writer = ShardWriter(exchange)
    state = live_state(module, [optimizer])
    writer.begin(state)
    content = b"".join(writer.take(state).files[SHARD]())
    assert b"optimizer_0.state.weight" in content
    exchange.close()
