"""JSON for programs has the text that the encoder of `json` gives, in less time."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt_lightning.cli.render.table_csv_json import json_pieces

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
)


def plain(value):
    """The value with texts for numbers that JSON has not."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


@given(VALUES)
def test_the_text_is_that_of_json(value):
    assert "".join(json_pieces(value)) == json.dumps(plain(value), indent=2)


@pytest.mark.parametrize("key", [1, True, None, 0.5, "\ud800"])
def test_keys_of_any_kind(key):
    assert "".join(json_pieces({key: {key: 1}})) == json.dumps({key: {key: 1}}, indent=2)


def test_what_is_too_deep_is_cut_off():
    value: object = 1
    for _ in range(100):
        value = [value]
    text = "".join(json_pieces({"a": value}))
    assert text.count("[") == 63
    assert '"..."' in text
