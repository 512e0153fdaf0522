"""What is written as JSON without a look at each item reads back the same."""

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from bt_lightning.snapshot.encode_tree import KIND, Encoder
from bt_lightning.snapshot.plain_values import is_json


class Text(str):
    """What `json` would write as a text, and read back as one."""

    __slots__ = ()


ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(1 << 5000),
    st.floats(),
    st.text(),
    st.sampled_from(["\ud800", "\udc00", Text("a"), (1, 2), b"x", 1j]),
)
KEYS = st.one_of(st.text(), st.sampled_from([KIND, "\ud800", Text("k"), 1, True, None]))
VALUES = st.recursive(ATOMS, lambda of: st.lists(of) | st.dictionaries(KEYS, of), max_leaves=20)


@given(st.one_of(st.lists(VALUES), st.dictionaries(KEYS, VALUES)))
def test_what_is_json_comes_back_the_same(value):
    """If not, a checkpoint would hold another value than the state."""
    if is_json(value, KIND, 4096):
        assert repr(json.loads(json.dumps(value))) == repr(value)
        assert KIND not in _keys(value)


def _keys(value):
    if isinstance(value, dict):
        return {*value, *(key for item in value.values() for key in _keys(item))}
    return {key for item in value for key in _keys(item)} if isinstance(value, list) else set()


def test_only_plain_values_are_json():
    for value in ([math.nan], [math.inf], [(1,)], [Text("a")], {1: 2}, {KIND: 1}, {"a": {KIND: 1}}):
        assert not is_json(value, KIND, 4096)
    assert not is_json([1 << 4097], KIND, 4096)
    assert is_json({"a": [1, 2.5, None, True, "é", {}], "b": []}, KIND, 4096)


def test_a_list_within_itself_ends():
    """If not, a save would hang."""
    value = []
    value += [value] * 100
    assert not is_json(value, KIND, 4096)


def test_the_tree_of_a_plain_value_is_that_value():
    value = {"loops": [{"current": {"ready": 3}, "total": {}}], "lr": 1e-3, "name": "é"}
    assert Encoder().encode({"global_step": 1, "state_dict": {}, **value}) == {
        "global_step": 1,
        "state_dict": {},
        **value,
    }
