"""bt:// URLs: what is one, what is said of what is none, and that a value survives its text."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bt_lightning.errors import InvalidSettingError
from bt_lightning.uri import LATEST, BtUri, is_bt, parse

relaxed = settings(deadline=None, database=None)

letters = st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\\%")
names = (
    st.text(letters, min_size=1, max_size=40)
    .filter(lambda name: "@" not in name and name not in {".", ".."})
    .filter(lambda name: not name.startswith("loops:"))
)
parts = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\\"),
    min_size=1,
    max_size=40,
).filter(lambda part: part not in {".", ".."})
paths = st.lists(parts, max_size=5).map("/".join)


@pytest.mark.parametrize(
    ("text", "project", "revision", "path"),
    [
        ("bt://demo", "demo", LATEST, ""),
        ("bt://demo/", "demo", LATEST, ""),
        ("bt://demo@latest", "demo", LATEST, ""),
        (
            "bt://my-training-project@job123/checkpoint-1",
            "my-training-project",
            "job123",
            "checkpoint-1",
        ),
        ("bt://demo@job1/", "demo", "job1", ""),
        ("bt://demo/a/checkpoint-7/sub/f.bin", "demo", LATEST, "a/checkpoint-7/sub/f.bin"),
        ("bt://demo@j/checkpoint-1@2/x", "demo", "j", "checkpoint-1@2/x"),
        ("bt://demo/checkpoint-1@2", "demo", LATEST, "checkpoint-1@2"),
        ("bt://my project@j/epoch=1 step=2", "my project", "j", "epoch=1 step=2"),
        ("bt://d\u00e9mo@j/\u6a21\u578b", "d\u00e9mo", "j", "\u6a21\u578b"),
        ("bt://demo@j/%2e%2e/a%2fb", "demo", "j", "%2e%2e/a%2fb"),
        ("bt://demo@j/checkpoint-1/", "demo", "j", "checkpoint-1"),
        ("bt://demo?x#y@j/a?b#c", "demo?x#y", "j", "a?b#c"),
        ("bt://demo@j/.gitattributes", "demo", "j", ".gitattributes"),
    ],
)
def test_a_url_is_taken_apart_where_the_grammar_says(text, project, revision, path):
    assert parse(text) == BtUri(project, revision, path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no bt:// URL: expected bt://project"),
        ("demo@j/x", "is no bt:// URL"),
        ("BT://demo", "is no bt:// URL"),
        ("s3://demo", "is no bt:// URL"),
        ("bt:/demo", "is no bt:// URL"),
        ("bt://", "names no project"),
        ("bt:///x", "names no project"),
        ("bt://@j", "an empty project"),
        ("bt://demo@", "an empty revision"),
        ("bt://demo@/x", "an empty revision"),
        ("bt://a@b@c/x", "more than one '@'"),
        ("bt://demo//x", "the path '/x' of a bt:// URL cannot be used"),
        ("bt://demo//", "the path '/' of a bt:// URL cannot be used"),
        ("bt://demo/a//b", "cannot be used"),
        ("bt://demo/a//", "cannot be used"),
        ("bt://demo/../x", "cannot be used"),
        ("bt://demo/a/..", "cannot be used"),
        ("bt://demo/.", "cannot be used"),
        ("bt://demo/a\\b", "cannot be used"),
        ("bt://demo/a\x00b", "cannot be used"),
        ("bt://demo/a\nb", "cannot be used"),
        ("bt://demo/a\x7f", "cannot be used"),
        ("bt://demo/\ud800", "cannot be used"),
        ("bt://demo/" + "\u00e9" * 128, "at most 255 bytes"),
        ("bt://..", "the project '..' of a bt:// URL cannot be used"),
        ("bt://./x", "the project '.'"),
        ("bt://demo@..", "the revision '..' of a bt:// URL cannot be used"),
        ("bt://de\tmo", "without control characters"),
        ("bt://demo@a\\b", "without control characters"),
        ("bt://\ud800", "cannot be used"),
        ("bt://demo%2Fx@j", "percent escape, and none is decoded"),
        ("bt://demo@%2e%2e/x", "the revision '%2e%2e' of a bt:// URL has a percent escape"),
        ("bt://loops:run1/weights/final", "Baseten Loops, which only Baseten's own service reads"),
    ],
)
def test_a_bad_url_is_refused_with_what_is_wrong(text, says):
    with pytest.raises(InvalidSettingError) as caught:
        parse(text)
    assert says in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_a_long_bad_url_does_not_fill_the_screen():
    with pytest.raises(InvalidSettingError) as caught:
        parse("bt://demo/" + "a/" * 5000 + "..")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("values", [("a/b",), ("a@b",), ("a", "b/c"), ("a", "b@c"), ("a", "")])
def test_a_value_that_would_read_back_as_another_cannot_be_made(values):
    with pytest.raises(InvalidSettingError):
        BtUri(*values)


def test_the_text_is_the_shortest():
    assert str(BtUri("demo")) == "bt://demo"
    assert str(BtUri("demo", "latest", "a/b")) == "bt://demo/a/b"
    assert str(BtUri("demo", "j")) == "bt://demo@j"
    assert str(BtUri("demo", "j", "a@2/b")) == "bt://demo@j/a@2/b"


@relaxed
@given(names, names, paths)
def test_a_value_survives_its_text(project, revision, path):
    uri = BtUri(project, revision, path)
    assert parse(str(uri)) == uri


@relaxed
@given(
    st.one_of(
        st.text(max_size=60),
        st.lists(
            st.sampled_from(["..", ".", "", "a", "b@2", "@", "%2e", "\\", "\x00", "\n", "loops:x"]),
            max_size=6,
        ).map("/".join),
    )
)
@example("//")
def test_any_text_is_a_url_that_stays_inside_or_is_refused_by_our_error(text):
    try:
        uri = parse(f"bt://{text}")
    except InvalidSettingError:
        return
    assert parse(str(uri)) == uri
    assert not {"", ".", ".."} & {
        uri.project,
        uri.revision,
        *uri.path.split("/")[bool(not uri.path) :],
    }
    assert "/" not in uri.project + uri.revision
    assert "\x00" not in str(uri)


def test_only_text_that_says_bt_is_meant_as_one():
    assert is_bt("bt://")
    assert not is_bt("bt:demo")
    assert not is_bt(None)
    assert not is_bt(b"bt://demo")
