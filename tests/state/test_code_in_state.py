"""Functions, partials and modules in a state: by name, without pickle; what a process holds."""

from __future__ import annotations

import functools
import json
import os
import shutil

import pytest
import torch
from state_tools import Foreign, Pair, Plain, crafted, same

from bt_lightning import BTCheckpointIO, UnsafeLoadError
from bt_lightning.path_layout import LEFTOVERS, TREE
from bt_lightning.restore.live_objects import LiveObjects

F = torch.nn.functional


def own_loss(one, other):
    return (one - other).abs().mean()


def own_hook(*_):
    return None


class OwnLoss(torch.nn.Module):
    def __init__(self, weight=2.0):
        super().__init__()
        self.weight = weight
        self.register_buffer("scale", torch.tensor([1.0, 2.0]))

    def forward(self, one, other):
        return self.weight * (one - other).mean() * self.scale.sum()


class Holder:
    """What a module or datamodule is to a load."""

    def __init__(self, **attributes):
        vars(self).update(attributes)


def saved(place, value):
    BTCheckpointIO().save_checkpoint({"value": value}, place)
    return place


def loaded(place, held=None, **options):
    io = BTCheckpointIO()
    io.writer.live_objects = held
    return io.load_checkpoint(place, **options)["value"]


@pytest.mark.parametrize(
    "function",
    [F.mse_loss, F.relu, F.gelu, F.linear, torch.relu, torch.nn.init.xavier_uniform_],
)
def test_functions_of_torch_come_back_without_pickle(function, place):
    saved(place, function)
    assert not (place / LEFTOVERS).exists()
    assert loaded(place) is function


@pytest.mark.parametrize(
    "module",
    [
        torch.nn.MSELoss(reduction="sum"),
        torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]), label_smoothing=0.1),
        torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.GELU(), torch.nn.BatchNorm1d(3)),
    ],
    ids=lambda module: type(module).__name__,
)
def test_modules_of_torch_come_back_without_pickle(module, place):
    saved(place, module.eval())
    assert not (place / LEFTOVERS).exists()
    back = loaded(place)
    assert type(back) is type(module)
    assert repr(back) == repr(module)
    assert not back.training
    same(dict(back.state_dict()), dict(module.state_dict()))
    assert [p.requires_grad for p in back.parameters()] == [
        p.requires_grad for p in module.parameters()
    ]
    if isinstance(module, torch.nn.CrossEntropyLoss):
        args = torch.tensor([[0.2, 0.8], [0.5, 0.1]]), torch.tensor([0, 1])
        assert torch.equal(back(*args), module(*args))


def test_a_partial_of_what_is_known_comes_back(place):
    value = functools.partial(torch.optim.Adam, lr=1e-3, betas=(0.9, 0.95))
    saved(place, value)
    assert not (place / LEFTOVERS).exists()
    back = loaded(place)
    assert (back.func, back.args, back.keywords) == (value.func, value.args, value.keywords)


@pytest.mark.parametrize("value", [own_loss, functools.partial(own_loss, other=1)])
def test_a_function_of_the_script_needs_a_process_that_holds_it(value, place):
    with pytest.warns(UserWarning, match=r"value.*\(own_loss\) needs torch\.serialization"):
        saved(place, value)
    assert not (place / LEFTOVERS).exists()
    with pytest.raises(UnsafeLoadError, match=r"own_loss, which this load does not trust"):
        loaded(place)
    back = loaded(place, LiveObjects([Holder(loss=[{"inner": own_loss}])]))
    assert back is value or back.func is own_loss
    assert BTCheckpointIO(allowed=[own_loss]).load_checkpoint(place)


def test_a_module_of_the_script_needs_a_process_that_holds_its_class(place):
    with pytest.warns(UserWarning, match=r"value \(OwnLoss\) needs"):
        saved(place, OwnLoss(3.0))
    with pytest.raises(UnsafeLoadError):
        loaded(place)
    back = loaded(place, LiveObjects([Holder(criterion=OwnLoss())]))
    assert back.weight == 3.0
    assert back(torch.ones(2), torch.zeros(2)) == 9.0
    assert loaded(place, weights_only=False).weight == 3.0


def test_classes_of_the_script_are_known_to_a_process_that_holds_them(place):
    with pytest.warns(UserWarning, match="needs torch"):
        saved(place, {"plain": Plain(3), "pair": Pair(1, 2), "kind": Plain})
    with pytest.raises(UnsafeLoadError):
        loaded(place)
    held = LiveObjects([Holder(config=Plain(), pairs=(Pair(0),))])
    assert loaded(place, held) == {"plain": Plain(3), "pair": Pair(1, 2), "kind": Plain}


@pytest.mark.filterwarnings("ignore:saved with pickle")
def test_an_equal_object_that_the_process_holds_stands_for_a_pickle(place):
    saved(place, Foreign([1, 2.5, "a"]))
    with pytest.raises(UnsafeLoadError, match="BT_WEIGHTS_ONLY=0"):
        loaded(place)
    own = Foreign([1, 2.5, "a"])
    assert loaded(place, LiveObjects([Holder(one=Foreign(3), other={"x": own})])) is own


@pytest.mark.filterwarnings("ignore:saved with pickle")
@pytest.mark.parametrize(
    "root", [Foreign([1, 2.5, "b"]), Holder(value=[1, 2.5, "a"]), None, Holder(bad=open)]
)
def test_an_object_that_differs_stands_for_nothing(root, place):
    saved(place, Foreign([1, 2.5, "a"]))
    with pytest.raises(UnsafeLoadError, match=r"value could not be saved without pickle"):
        loaded(place, LiveObjects([root]))


@pytest.mark.filterwarnings("ignore:saved with pickle")
def test_large_leftovers_are_not_compared(place):
    """Comparing means pickling once more, on the training thread."""
    saved(place, Foreign(os.urandom(5 << 20)))
    assert json.loads((place / TREE).read_text())["pickled"] == {}


def test_a_process_that_holds_much_is_looked_at_for_a_moment():
    deep: list = []
    for _ in range(200_000):
        deep = [deep]
    ring = Holder()
    ring.ring, ring.deep, ring.wide = ring, deep, [Holder(x=i) for i in range(200_000)]
    ring.trainer = Holder(loss=own_loss)
    held = LiveObjects([ring])
    assert "state_tools:Plain" not in held.names
    assert not any("own_loss" in name for name in held.names)  # behind the trainer: anything


@pytest.mark.parametrize(
    "name",
    ["os:system", "builtins:eval", "torch:load", "torch.hub:load", "shutil:rmtree", "torch:nn", ""],
)
@pytest.mark.parametrize("kind", ["function", "partial", "module"])
def test_no_function_of_a_file_is_found_because_it_is_imported(kind, name, place):
    assert shutil.rmtree
    nodes = {
        "function": {"$": "function", "name": name},
        "partial": {
            "$": "partial",
            "func": {"$": "function", "name": name},
            "args": {"$": "tuple", "v": []},
            "keywords": {},
        },
        "module": {"$": "module", "class": name, "v": []},
    }
    crafted(place, nodes[kind])
    with pytest.raises(UnsafeLoadError):
        loaded(place, LiveObjects([Holder(loss=own_loss)]))


def test_a_module_with_hooks_or_parts_held_twice_stays_a_pickle(place):
    """Its form would lose them."""
    shared = torch.nn.Linear(2, 2)
    twice = torch.nn.Sequential(shared, shared)
    tied = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    hooked = torch.nn.Linear(2, 2)
    hooked.register_forward_hook(own_hook)
    names = ", ".join(rf"value\.{index} \([^)]*\)" for index in range(4))
    with pytest.warns(UserWarning, match=rf"leftovers\.pt: {names}"):
        saved(place, [twice, tied, hooked, OwnLinear()])
    back = loaded(place, weights_only=False)
    assert back[0][0] is back[0][1]
    assert back[1][0].weight is back[1][1].weight


class OwnLinear(torch.nn.Linear):
    def __init__(self):
        super().__init__(2, 2)

    def __getstate__(self):
        return vars(self).copy()

    def __setstate__(self, state):
        vars(self).update(state)


@pytest.mark.parametrize(
    ("variables", "given", "works"),
    [
        ({}, None, False),
        ({"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}, None, True),
        ({"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}, True, False),
        ({"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}, False, False),
        ({"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "0"}, None, False),
    ],
)
@pytest.mark.filterwarnings("ignore:saved with pickle")
def test_the_variables_of_torch_mean_what_they_mean_to_torch(
    variables, given, works, place, monkeypatch
):
    saved(place, Foreign(3))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if works:
        assert loaded(place, weights_only=given) == Foreign(3)
    else:
        with pytest.raises(UnsafeLoadError):
            loaded(place, weights_only=given)
