"""Names, layouts and parts of sharded states, beside what torch says of them."""

from __future__ import annotations

import pytest
import sharded_acts
import sharded_ranks
import torch

from bt_lightning.errors import UnsupportedStateError
from bt_lightning.snapshot.local_shards import live_state, module_state, optimizer_state
from bt_lightning.snapshot.shard_encoding import table_of


@pytest.fixture(scope="module")
def ranks():
    return sharded_ranks.run(2, sharded_acts.names_and_layouts)


def test_names_are_those_of_torch(ranks):
    """Tied and frozen weights, LoRA, wrappers of activation checkpoints and of `torch.compile`."""
    for rank in ranks:
        assert rank["weights"] == rank["weights of torch"]
        assert rank["state"] == rank["state of torch"]


def test_before_the_first_step_there_is_no_optimizer_state_and_none_is_made(ranks):
    for rank in ranks:
        assert rank["before"] == (0, 0)


def test_after_a_validation_the_weights_are_sharded_again(ranks):
    for rank in ranks:
        assert rank["unsharded"], "FSDP2 has no longer unsharded weights there"
        assert rank["resharded"]


def test_layouts_are_where_torch_has_the_parts(ranks):
    for rank in ranks:
        assert rank["layouts"] > 20


def test_what_gives_no_box_is_refused_by_name(ranks):
    for rank in ranks:
        assert "weight is placed as (P" in rank["partial"]
        assert "Shard or Replicate" in rank["partial"]


def test_a_part_under_way_is_waited_for(ranks):
    assert all(rank["under way"] for rank in ranks)


def test_a_part_in_a_value_that_only_pickle_stores_is_refused(ranks):
    """By rank 0, which alone stores such values; a DTensor where the tree reaches it is saved."""
    hidden, reached = ranks[0]["hidden"]
    assert "callbacks.average" in hidden
    assert "DTensor, of which this rank has a part only" in hidden
    assert reached == ranks[1]["hidden"][1] == ["callbacks.average"]


def test_modules_that_dump_by_themselves_are_asked():
    class Own(torch.nn.Linear):
        def _save_to_state_dict(self, destination, prefix, keep_vars):
            destination[prefix + "half"] = self.weight[:1] if keep_vars else None

    class Extra(torch.nn.Module):
        def get_extra_state(self):
            return {"a": 1}

    net = torch.nn.Sequential(Own(2, 2), torch.nn.Linear(2, 2), Extra(), torch.nn.BatchNorm1d(2))
    assert module_state(net).keys() == net.state_dict().keys()
    assert module_state(net)["2._extra_state"] == {"a": 1}
    hooked = torch.nn.Sequential(torch.nn.Linear(2, 2))

    def without_bias(module, dumped, prefix, metadata):
        del dumped["0.bias"]

    hooked.register_state_dict_post_hook(without_bias)
    assert set(module_state(hooked)) == {"0.weight"}


def test_an_optimizer_of_other_tensors_is_refused():
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=1.0)
    with pytest.raises(UnsupportedStateError, match=r"shape \[3\], which is no parameter"):
        optimizer_state(net, optimizer)


def test_a_state_of_plain_tensors_has_a_table_too():
    net = torch.nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    table = table_of(live_state(net, [optimizer]))
    assert table["state_dict.weight"].shape == (3, 2)
    assert table["optimizer_0.state.bias.exp_avg"].dtype == "F32"
    assert all(held.layout is None for held in table.values())
    assert len(table) == 8
