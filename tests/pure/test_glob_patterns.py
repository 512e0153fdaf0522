"""Patterns name the files that their rule says, in a time that no pattern can stretch."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt_lightning.glob_patterns import chosen, matches


@pytest.mark.parametrize(
    ("pattern", "path", "named"),
    [
        ("*.safetensors", "model.safetensors", True),
        ("*.safetensors", "a/model.safetensors", False),
        ("**/*.safetensors", "model.safetensors", True),
        ("**/*.safetensors", "a/b/model.safetensors", True),
        ("optimizer/**", "optimizer/a/b", True),
        ("optimizer/**", "optimizer", False),
        ("rank-?/x", "rank-1/x", True),
        ("rank-?/x", "rank-11/x", False),
        ("a/*/c", "a/b/c", True),
        ("a/*/c", "a/b/b/c", False),
        ("model", "model.safetensors", False),
        ("[m]odel", "model", False),
        ("[m]odel", "[m]odel", True),
        ("", "", True),
        ("*", "", True),
    ],
)
def test_the_documented_rule(pattern, path, named):
    assert matches(pattern, path) is named


def by_regex(pattern, path):
    if pattern.startswith("**/") and by_regex(pattern[3:], path):
        return True
    parts = re.split(r"(\*{2,}|\*|\?)", pattern)
    words = {"*": "[^/]*", "?": "[^/]"}
    text = "".join(words.get(p, ".*" if p.startswith("**") else re.escape(p)) for p in parts)
    return re.fullmatch(text, path, re.DOTALL) is not None


@given(st.text("ab/*?.", max_size=8), st.text("ab/.", max_size=8))
def test_it_agrees_with_regular_expressions(pattern, path):
    if pattern.startswith("**/"):
        assert matches(pattern, path) == (by_regex(pattern, path) or by_regex(pattern[3:], path))
    else:
        assert matches(pattern, path) == by_regex(pattern, path)


def test_a_pattern_that_makes_regular_expressions_hang_is_answered_at_once():
    assert not matches("a*" * 200 + "b", "a" * 2000)
    assert not matches("**" * 100 + "b", "a" * 2000)


def test_exclude_wins_over_include_and_nothing_named_is_all():
    assert chosen("a", (), ())
    assert not chosen("a", ("b",), ())
    assert not chosen("a", ("a",), ("*",))
