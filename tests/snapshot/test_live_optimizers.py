"""Names in states of optimizers are kept from save to save as long as all is the same objects."""

import pytest
import torch
from torch import nn

from bt_lightning.errors import UnsupportedStateError
from bt_lightning.snapshot.live_optimizers import LiveOptimizers
from bt_lightning.snapshot.local_shards import module_state, optimizer_state


def trained():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    module(torch.ones(1, 2)).sum().backward()
    return module, optimizer


def step(module, optimizer):
    optimizer.step()


def replace_state(module, optimizer):
    optimizer.state[module[0].weight]["exp_avg"] = torch.ones(2, 2)


def forget_state(module, optimizer):
    del optimizer.state[module[0].weight]


def reorder_state(module, optimizer):
    optimizer.state[module[0].weight] = optimizer.state.pop(module[0].weight)


def odd_state(module, optimizer):
    optimizer.state[module[0].weight] = "odd"


def change_rate(module, optimizer):
    optimizer.param_groups[0]["lr"] = 7.0


def regroup(module, optimizer):
    moved = optimizer.param_groups[0]["params"].pop()
    optimizer.param_groups.append({**optimizer.param_groups[0], "params": [moved]})


def swap(module, optimizer):
    optimizer.param_groups[0]["params"].reverse()


def rename(module, optimizer):
    module.other = module[0]
    del module[0]


def replace_weight(module, optimizer):
    old, new = module[1].weight, nn.Parameter(torch.zeros(1, 2))
    module[1].weight = new
    optimizer.param_groups[0]["params"][2] = new
    optimizer.state[new] = optimizer.state.pop(old)


CHANGES = [
    step,
    replace_state,
    forget_state,
    reorder_state,
    odd_state,
    change_rate,
    regroup,
    swap,
    rename,
    replace_weight,
]


def same(one, other):
    """Also in the order of keys, with the same objects."""
    if isinstance(one, dict) and isinstance(other, dict):
        pairs = zip(one.values(), other.values(), strict=True)
        return list(one) == list(other) and all(same(*pair) for pair in pairs)
    return one is other or (type(one) is type(other) and one == other)


@pytest.mark.parametrize("change", CHANGES)
def test_the_state_is_that_of_now_whatever_has_changed(change):
    module, optimizer = trained()
    live = LiveOptimizers()
    live.of(module_state(module), optimizer)
    optimizer.step()
    for _ in range(2):
        live.of(module_state(module), optimizer)
    change(module, optimizer)
    for _ in range(2):
        weights = module_state(module)
        assert same(live.of(weights, optimizer), optimizer_state(weights, optimizer))


def test_what_is_no_weight_of_the_module_is_refused_whenever_it_comes():
    module, optimizer = trained()
    optimizer.step()
    live = LiveOptimizers()
    live.of(module_state(module), optimizer)
    module[1].weight = nn.Parameter(torch.zeros(1, 2))
    for _ in range(2):
        with pytest.raises(UnsupportedStateError, match="no parameter of the module"):
            live.of(module_state(module), optimizer)


def test_a_caller_may_change_what_it_gets():
    module, optimizer = trained()
    optimizer.step()
    live, weights = LiveOptimizers(), module_state(module)
    for _ in range(3):
        found = live.of(weights, optimizer)
        assert same(found, optimizer_state(weights, optimizer))
        found["state"].clear()
        found["param_groups"][0]["params"].clear()
