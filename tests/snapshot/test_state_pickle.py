"""Any nested state: what was one object is one again, and shared memory is shared, as of torch."""

from __future__ import annotations

import copy
import io
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bt_lightning.snapshot import state_pickle
from bt_lightning.snapshot.folder_files import TorchFile, lay_out_folder
from bt_lightning.snapshot.state_files import EncodingCache


@pytest.fixture(autouse=True)
def groups_of_any_size(monkeypatch):
    monkeypatch.setattr(state_pickle, "LEAST_TENSORS", 0)


def pool():
    """Tensors that share storages, and containers that several values may hold."""
    base, other = torch.arange(24.0), torch.arange(6)
    tensors = [
        base, base[3:7], base.view(4, 6).t(), base.clone(), other, other[::2], torch.tensor(2.5),
        torch.empty(0), base[3:7].detach(), torch.nn.Parameter(base[:2]), other.bool(),
    ]  # fmt: skip
    shared = {"in": tensors[1], "n": 3}
    return [*tensors, shared, [shared, tensors[0]], (tensors[2], "text"), {}]


plain = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False),
    st.text(max_size=3), st.binary(max_size=3),
)  # fmt: skip
keys = st.one_of(st.text(max_size=3), st.integers(0, 300))
indices = st.integers(0, len(pool()) - 1).map(lambda index: ("pool", index))
values = st.recursive(
    st.one_of(indices, indices, plain),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=3).map(OrderedDict),
        st.tuples(inner, inner),
    ),
    max_leaves=12,
)
states = st.one_of(
    st.fixed_dictionaries({"state": st.dictionaries(keys, values, max_size=4), "rest": values}),
    st.dictionaries(keys, values, max_size=5),
    values,
)


def built(described, things):
    """A state with things of the pool in it."""
    if isinstance(described, tuple) and len(described) == 2 and described[0] == "pool":
        return things[described[1]]
    if isinstance(described, dict):
        return type(described)((key, built(item, things)) for key, item in described.items())
    if isinstance(described, (list, tuple)):
        return type(described)(built(item, things) for item in described)
    return described


def assert_alike(one, other, same, storages):
    """Equal, with the same objects twice and the same memory shared."""
    assert type(one) is type(other)
    if isinstance(one, (torch.Tensor, dict, list)):
        assert same.setdefault(id(one), id(other)) == id(other)
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        assert one.storage_offset() == other.storage_offset()
        assert one.requires_grad == other.requires_grad
        assert one.untyped_storage().nbytes() == other.untyped_storage().nbytes()
        assert torch.equal(one, other)
        if one.untyped_storage().nbytes():
            there = other.untyped_storage().data_ptr()
            assert storages.setdefault(one.untyped_storage().data_ptr(), there) == there
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key, value in one.items():
            assert_alike(value, other[key], same, storages)
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_alike(a, b, same, storages)
    else:
        assert one == other


def assert_written_as_torch_does(state, cache):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    files = lay_out_folder({"x.pt": TorchFile(state)}, cache).files
    ours = torch.load(io.BytesIO(b"".join(map(bytes, files["x.pt"]()))), weights_only=False)
    buffer.seek(0)
    theirs = torch.load(buffer, weights_only=False)
    for one, other in ((ours, theirs), (theirs, ours), (state, ours)):
        assert_alike(one, other, {}, {})


@settings(max_examples=200, deadline=None)
@given(states, st.integers(0, 3))
def test_a_state_comes_back_as_torch_has_it_at_each_save(described, change):
    things, cache = pool(), EncodingCache()
    state = built(described, things)
    assert_written_as_torch_does(state, cache)
    things[0].add_(1)
    if change == 1 and isinstance(state, dict):
        state["more"] = things[11]
    elif change == 2:
        state = built(described, pool())
    elif change == 3:
        state = copy.deepcopy(state)
    assert_written_as_torch_does(state, cache)
    assert_written_as_torch_does(built(described, things), cache)
