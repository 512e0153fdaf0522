"""Names of weights are kept from save to save as long as the module is the same."""

import pytest
import torch
from torch import nn

from bt_lightning.snapshot.live_weights import LiveWeights
from bt_lightning.snapshot.local_shards import module_state
from bt_lightning.snapshot.module_tree import ModuleTree


def model():
    return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1)))


def replace_weight(module):
    module[0].weight = nn.Parameter(torch.zeros(2, 2))


def replace_buffer(module):
    module[1][0].running_mean = torch.ones(2)


def replace_module(module):
    module[1][1] = nn.Linear(2, 3)


def add_module(module):
    module.append(nn.Linear(1, 1))


def take_out(module):
    del module[1][0]


def rename(module):
    module[0].kernel = module[0].weight
    del module[0].weight


def not_persistent(module):
    module[1][0].register_buffer("running_mean", module[1][0].running_mean, persistent=False)


def add_hook(module):
    module[0].register_state_dict_post_hook(lambda *_: None)


def change_class(module):
    module[0].__class__ = type("Other", (nn.Linear,), {})


CHANGES = [
    replace_weight,
    replace_buffer,
    replace_module,
    add_module,
    take_out,
    rename,
    not_persistent,
    add_hook,
    change_class,
]


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_a_module_is_seen(change):
    """If not, a save would hold weights that the module no longer has."""
    module = model()
    tree = ModuleTree(module)
    assert tree.is_same(module)
    change(module)
    assert not tree.is_same(module)


@pytest.mark.parametrize("change", [None, *CHANGES])
def test_the_weights_are_those_of_the_module_now(change):
    module, live = model(), LiveWeights()
    live.of(module)
    if change is not None:
        change(module)
    for _ in range(2):
        found, expected = live.of(module), module_state(module)
        assert list(found) == list(expected)
        assert all(found[name] is each for name, each in expected.items())


def test_another_module_with_the_same_parts_is_another():
    module, live = model(), LiveWeights()
    live.of(module)
    assert list(live.of(module[0])) == ["weight", "bias"]


def test_a_caller_may_change_what_it_was_given():
    """Callbacks take weights out of a checkpoint."""
    module, live = model(), LiveWeights()
    live.of(module).clear()
    assert list(live.of(module)) == list(module_state(module))


class Counting(nn.Linear):
    """A module whose own code says what its state is."""

    def get_extra_state(self):
        self.asked = getattr(self, "asked", 0) + 1
        return self.asked

    def set_extra_state(self, state) -> None:
        pass


def test_a_module_with_state_of_its_own_is_asked_at_each_save():
    module, live = nn.Sequential(Counting(1, 1)), LiveWeights()
    assert [live.of(module)["0._extra_state"] for _ in range(3)] == [1, 2, 3]


@pytest.mark.filterwarnings("ignore:`torch.jit.script`")
def test_a_module_of_torchscript_is_never_taken_for_the_same():
    module = torch.jit.script(nn.Linear(1, 1))
    assert not ModuleTree(module).is_same(module)
