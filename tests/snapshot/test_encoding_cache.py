"""What was encoded once is used again only while it is the same."""

from __future__ import annotations

import json
from concurrent.futures import Future

import pytest
import torch

from bt_lightning.snapshot import encode_tree, encoding_cache
from bt_lightning.snapshot.encoding_cache import comparison_with
from bt_lightning.snapshot.safetensors_layout import plan_file
from bt_lightning.snapshot.shared_tensors import WeightNames
from bt_lightning.snapshot.size_estimate import alias_large_groups
from bt_lightning.snapshot.state_files import EncodingCache, encode_early, lay_out_files


def group():
    return {f"w{i}": torch.zeros(3, 2) for i in range(20)}


def test_the_same_tensors_and_views_of_them_are_the_same():
    tensors = group()
    same = comparison_with(tensors)
    assert same(tensors)
    assert same({name: tensor.detach() for name, tensor in tensors.items()})
    tensors["w3"].add_(1)
    assert same(tensors), "what changes is the content, which is copied each time"


CHANGES = {
    "another place": lambda t: t.clone(),
    "another shape": lambda t: t.view(2, 3),
    "other strides": lambda t: t.t().contiguous().t(),
    "the first half": lambda t: t[:1],
    "a parameter": torch.nn.Parameter,
    "with a gradient": lambda t: t.detach().requires_grad_(),
    "a number": lambda _: 1.0,
    "sparse": lambda t: t.to_sparse(),
    "another dtype in the same place": lambda t: t.view(torch.int32),
    "negated lazily": torch._neg_view,
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_anything_else_is_not(change):
    tensors = group()
    same = comparison_with(tensors)
    assert not same({**tensors, "w7": CHANGES[change](tensors["w7"])})


def test_other_names_orders_and_numbers_are_not_the_same():
    tensors = {**group(), "step": 1, "lr": 0.0, "flag": True}
    same = comparison_with(tensors)
    assert same(dict(tensors))
    assert not same({**tensors, "step": 2})
    assert not same({**tensors, "step": True})
    assert not same({**tensors, "lr": -0.0})
    assert not same(dict(reversed(tensors.items())))
    assert not same({**tensors, "more": 1})
    assert not same({name: item for name, item in tensors.items() if name != "w1"})
    assert not same(list(tensors.values()))


def test_an_object_whose_memory_was_exchanged_is_seen():
    tensors = group()
    same = comparison_with(tensors)
    tensors["w1"].data = torch.ones(3, 2)
    assert not same(tensors)


IN_PLACE = {
    "transposed": lambda t: t.t_(),
    "of another shape": lambda t: setattr(t, "data", t.detach().view(2, 3)),
    "of another dtype": lambda t: setattr(t, "data", t.detach().view(torch.int32)),
    "one that is trained": lambda t: t.requires_grad_(),
}


@pytest.mark.parametrize("change", list(IN_PLACE))
def test_an_object_that_is_another_tensor_in_the_same_place_is_seen(change):
    tensors = group()
    same = comparison_with(tensors)
    IN_PLACE[change](tensors["w1"])
    assert not same(tensors)


def test_views_that_come_again_are_told_by_their_identity(monkeypatch):
    tensors = group()
    views = {name: tensor.detach() for name, tensor in tensors.items()}
    same = comparison_with(tensors)
    assert same(views)
    monkeypatch.setattr(encoding_cache, "_negated", None)  # what only strangers are asked for
    assert same(views)
    views["w2"].data = torch.ones(3, 2)
    assert not same(views)


@pytest.mark.parametrize("odd", [[torch.zeros(1)], {1.5: 1}, object(), torch.zeros(2).to_sparse()])
def test_what_cannot_be_compared_is_never_reused(odd):
    assert comparison_with({**group(), "odd": odd}) is None


def content(snapshot):
    return {path: b"".join(bytes(p) for p in pieces()) for path, pieces in snapshot.files.items()}


def test_a_snapshot_with_a_memory_has_the_bytes_of_one_without():
    """Over changes of the model, the optimizer, ties and collisions of names."""
    torch.manual_seed(0)
    memory = EncodingCache()
    module = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(12)])
    optimizer = torch.optim.AdamW(module.parameters())

    def checkpoint(**more):
        return {
            "state_dict": module.state_dict(),
            "optimizer_states": [optimizer.state_dict()],
            "rng": torch.get_rng_state(),
            **more,
        }

    def compare(**more):
        kept = content(lay_out_files(checkpoint(**more), cache=memory))
        assert kept == content(lay_out_files(checkpoint(**more)))
        json.loads(kept["trainer.json"])

    compare()
    for weight in module.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    compare()
    optimizer.step()
    compare(epoch=3)
    compare(callbacks={"ema": [weight.detach() for weight in module.parameters()]})
    compare(**{"optimizer_states.0.state.0.exp_avg": torch.ones(2)})
    module[3] = torch.nn.Linear(4, 4)
    compare()
    module.half()
    compare()
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]})
    compare()
    before = {"callbacks": {"tied": module[0].weight.detach()}}
    kept = content(lay_out_files({**before, **checkpoint()}, cache=memory))
    assert kept == content(lay_out_files({**before, **checkpoint()}))
    compare()


def test_tensors_that_are_made_for_each_save_are_not_kept():
    """As a gathered state_dict: the last one would stay in memory until the next save."""
    import weakref

    memory, seen = EncodingCache(), []
    for _ in range(8):
        made = {f"w{i}": torch.zeros(4) for i in range(20)}
        seen.append(weakref.ref(made["w0"]))
        lay_out_files({"state_dict": made}, cache=memory)
        del made
    assert [ref() for ref in seen[4:]] == [None] * 4


def stepped(count=12):
    module = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(count)])
    optimizer = torch.optim.AdamW(module.parameters())
    for weight in module.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    return module, optimizer


def dumped(module, optimizer):
    return {
        "state_dict": module.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "rng": torch.get_rng_state(),
    }


def foreseen(module, optimizer, prefix=""):
    memory, look = EncodingCache(), Future()
    memory.early = look
    names = WeightNames(prefix)
    look.set_result(encode_early(alias_large_groups(module, [optimizer]), names))
    return memory


def test_a_first_save_encodes_nothing_that_was_foreseen(monkeypatch):
    module, optimizer = stepped()
    memory = foreseen(module, optimizer)
    optimizer.step()  # values are copied later
    wanted = content(lay_out_files(dumped(module, optimizer)))
    monkeypatch.setattr(encoding_cache, "comparison_with", None)
    monkeypatch.setattr(
        encode_tree, "comparison_with", lambda _: pytest.fail("a group was encoded")
    )
    assert content(lay_out_files(dumped(module, optimizer), cache=memory)) == wanted


SINCE = {
    "a layer": lambda m, o: m.__setitem__(3, torch.nn.Linear(4, 4)),
    "the dtype": lambda m, o: m.half(),
    "weights that were exchanged": lambda m, o: setattr(m[1].weight, "data", torch.ones(4, 4)),
    "a state that was loaded": lambda m, o: o.load_state_dict(o.state_dict()),
    "a group": lambda m, o: o.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]}),
    "a moment": lambda m, o: o.state[m[0].weight].update(exp_avg=torch.ones(4, 4)),
    "what is trained": lambda m, o: m[0].requires_grad_(False),
}


@pytest.mark.parametrize("change", list(SINCE))
def test_what_changed_since_it_was_foreseen_is_encoded_as_it_is(change):
    module, optimizer = stepped()
    memory = foreseen(module, optimizer)
    SINCE[change](module, optimizer)
    kept = content(lay_out_files(dumped(module, optimizer), cache=memory))
    assert kept == content(lay_out_files(dumped(module, optimizer)))


def test_what_was_foreseen_with_another_prefix_names_nothing():
    module, optimizer = stepped()
    memory = foreseen(module, optimizer, prefix="0.")
    kept = content(lay_out_files(dumped(module, optimizer), cache=memory))
    assert kept == content(lay_out_files(dumped(module, optimizer)))


def test_a_foresight_that_failed_is_no_harm():
    module, optimizer = stepped()
    memory = EncodingCache()
    memory.early = Future()
    memory.early.set_exception(RuntimeError("dictionary changed size during iteration"))
    kept = content(lay_out_files(dumped(module, optimizer), cache=memory))
    assert kept == content(lay_out_files(dumped(module, optimizer)))


class Dumping(torch.nn.Linear):
    def state_dict(self, *args, **kwargs):
        pytest.fail("it may wait for the other ranks")


class Extra(torch.nn.Linear):
    def get_extra_state(self):
        pytest.fail("it may cost something")


def hooked():
    module = torch.nn.Linear(2, 2)
    module.register_state_dict_pre_hook(lambda *_: pytest.fail("it may count"))
    return module


@pytest.mark.parametrize("make", [lambda: Dumping(2, 2), lambda: Extra(2, 2), hooked])
def test_code_of_the_users_own_is_not_run_early(make):
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), make())
    optimizer = torch.optim.SGD(module.parameters())
    assert alias_large_groups(module, [optimizer]) == {"optimizer_states": [{"state": {}}]}
    optimizer.register_state_dict_pre_hook(lambda *_: pytest.fail("it may count"))
    assert alias_large_groups(module, [optimizer]) == {}


def test_a_header_is_spelled_as_json_spells_it():
    names = ["a", '"quoted"', "\\", "é", "\n", "\U0001f600", ""]
    tensors = {name: torch.zeros(2, 3)[:, : i % 4] for i, name in enumerate(names)}
    header = plan_file({**tensors, "scalar": torch.tensor(1, dtype=torch.int64)}).header
    text = header[8:].rstrip(b" ").decode()
    assert json.dumps(json.loads(text), separators=(",", ":")) == text
    assert json.loads(text).keys() == {"__metadata__", "scalar", *names}


def test_what_was_foreseen_lies_apart_from_what_training_changes():
    module, optimizer = stepped()
    parts = alias_large_groups(module, [optimizer])
    state = parts["optimizer_states"][0]["state"][0]
    assert state is not optimizer.state[module[0].weight]
    before = module[0].weight.data_ptr(), state["exp_avg"].data_ptr()
    module[0].weight.data = torch.ones(4, 4)
    optimizer.state[module[0].weight]["exp_avg"].data = torch.ones(4, 4)
    assert before == (parts["state_dict"]["0.weight"].data_ptr(), state["exp_avg"].data_ptr())


def test_dicts_within_the_state_of_a_weight_are_saved():
    """As optimizers with preconditioners have them."""
    state = {0: {"inner": {0: torch.ones(3)}, "more": {"x": {"y": torch.ones(2)}}}}
    assert comparison_with(state)(state)
    assert not comparison_with(state)({0: {"inner": {0: torch.ones(3)}}})
    memory = EncodingCache()
    checkpoint = {"optimizer_states": [{"state": state, "param_groups": []}]}
    assert content(lay_out_files(checkpoint, cache=memory)) == content(lay_out_files(checkpoint))
