"""Round trips of states that nobody thought of."""

from __future__ import annotations

import datetime as dt
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import PurePosixPath
from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from state_tools import Color, Pair, Plain, Point, returns_the_same

CHECK = settings(
    deadline=None, derandomize=True, max_examples=150, suppress_health_check=list(HealthCheck)
)
MARKS = ["$", "v", "__metadata__", "", ".", "state_dict", "leftover", "hyper_parameters"]
# surrogates in pairs are a case of their own, in test_values.py
text = st.text(max_size=8) | st.sampled_from(MARKS) | st.sampled_from(["\ud800", "a\udfff"])
zones = st.none() | st.timedeltas(dt.timedelta(hours=-23), dt.timedelta(hours=23)).map(
    lambda delta: dt.timezone(delta, "X")
)
shapes = st.lists(st.integers(0, 3), max_size=3)
dtypes = st.sampled_from(
    [torch.float32, torch.bfloat16, torch.float8_e5m2, torch.bool, torch.complex128, torch.uint16]
)


def _tensor(dtype, shape, turned):
    count = torch.Size(shape).numel() * dtype.itemsize
    raw = (torch.arange(count) * 7 % (2 if dtype is torch.bool else 256)).to(torch.uint8)
    tensor = raw.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)
    return tensor.permute(list(reversed(range(len(shape))))) if turned else tensor


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**200), 10**200),
    st.floats(),
    st.complex_numbers(),
    text,
    st.binary(max_size=8),
    st.binary(max_size=4).map(bytearray),
    st.decimals(),
    st.fractions(),
    st.uuids(),
    st.dates(),
    st.timedeltas(),
    st.datetimes(timezones=zones),
    st.times(timezones=zones),
    st.builds(range, st.integers(), st.integers(), st.integers(1)),
    st.sampled_from([Color.RED, Color.GREEN, int, dict, torch.float16, torch.device("cpu")]),
    text.filter(lambda t: "\x00" not in t).map(PurePosixPath),
    st.builds(_tensor, dtypes, shapes, st.booleans()),
    st.builds(lambda n, s: np.zeros(s, n), st.sampled_from(["<i4", ">f8", "<U3", "?"]), shapes),
    st.sampled_from([np.float32(1.5), np.int64(-1), np.datetime64("NaT"), np.dtype("<f2")]),
)
keys = st.one_of(
    text, st.integers(), st.floats(allow_nan=False), st.none(), st.tuples(st.integers(), text)
)


def _grown(inner):
    pairs = st.lists(st.tuples(keys, inner), max_size=4)
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(text, inner, max_size=4),
        pairs.map(dict),
        pairs.map(OrderedDict),
        pairs.map(lambda items: defaultdict(list, items)),
        st.dictionaries(keys, st.integers(), max_size=3).map(Counter),
        st.builds(deque, st.lists(inner, max_size=3), st.none() | st.integers(3, 9)),
        st.sets(keys, max_size=3),
        st.frozensets(keys, max_size=3),
        st.builds(Plain, inner, inner),
        st.builds(Point, inner, inner),
        st.builds(Pair, st.integers(), inner),
        inner.map(lambda value: SimpleNamespace(a=value)),
    )


@CHECK
@given(value=st.recursive(leaves, _grown, max_leaves=15))
def test_any_state_comes_back_as_it_was(source, value):
    returns_the_same(value, source / "any")


@CHECK
@given(value=st.dictionaries(keys, st.builds(_tensor, dtypes, shapes, st.booleans()), max_size=6))
def test_tensors_under_any_names_come_back_as_they_were(source, value):
    returns_the_same(value, source / "names")
