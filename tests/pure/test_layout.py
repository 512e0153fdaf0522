"""Names and paths: nothing that a checkpoint, a manifest or a listing says leaves its root."""

from __future__ import annotations

import os
import posixpath
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bt_lightning.errors import CheckpointCorruptError, InvalidSettingError
from bt_lightning.path_layout import (
    MANIFEST,
    MARKER,
    check_checkpoint_id,
    check_member,
    generation_of,
    job_prefix,
    plain_folder,
    slug,
    store_folder,
    under,
)

relaxed = settings(deadline=None, database=None)

parts = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\\"),
    min_size=1,
    max_size=40,
).filter(lambda part: not part.startswith("."))
ids = st.lists(parts, min_size=1, max_size=4).map("/".join)
hostile = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(["..", ".", "", "a", "b@2", "~", "C:", "\\", "\x00", "\n", " ", "\u2025"]),
        max_size=6,
    ).map("/".join),
)

ESCAPES = [
    "",
    ".",
    "..",
    "/",
    "/etc/passwd",
    "//host/share",
    "../up",
    "a/../../up",
    "a/..",
    "a//b",
    "a/",
    "./a",
    "a/./b",
    "a\\..\\b",
    "\\\\host\\share",
    "a\x00b",
    "a\nb",
    "a\x7fb",
    "a" * 256,
    "\u00e9" * 128,
]


@pytest.mark.parametrize("path", ESCAPES)
def test_an_id_that_could_leave_its_root_is_refused(path):
    with pytest.raises(InvalidSettingError, match="cannot be used"):
        check_checkpoint_id(path)


@pytest.mark.parametrize("path", ESCAPES)
def test_a_member_that_could_leave_its_checkpoint_is_refused(path):
    with pytest.raises(CheckpointCorruptError, match="not a path inside"):
        check_member(path)


@pytest.mark.parametrize("path", [".a", "a/.b", ".bt_lightning/tmp/x", "a/...", ".a/b"])
def test_an_id_in_a_dot_folder_is_refused(path):
    """Temporaries live there: a checkpoint in one would be swept."""
    with pytest.raises(InvalidSettingError):
        check_checkpoint_id(path)


@pytest.mark.parametrize("path", [None, 1, b"a", ["a"], {"a": 1}, True])
def test_a_member_that_is_no_text_is_refused(path):
    with pytest.raises(CheckpointCorruptError):
        check_member(path)


@pytest.mark.parametrize("path", [MANIFEST, MARKER])
def test_a_manifest_cannot_name_itself_or_the_marker_as_data(path):
    """Uploading data over the manifest would commit a checkpoint before its files are there."""
    with pytest.raises(CheckpointCorruptError, match="not data"):
        check_member(path)


@pytest.mark.parametrize(
    "path",
    ["checkpoint-20", "a/checkpoint-7", "epoch=0-step=10", "a@2", "\u00e9/\u6f22", "a b", "-"],
)
def test_a_plain_relative_path_is_an_id_and_a_member(path):
    assert check_checkpoint_id(path) == path
    assert check_member(path) == path


def test_a_member_may_lie_in_a_dot_folder():
    assert check_member(".cache/x") == ".cache/x"


@relaxed
@given(ids)
def test_every_id_made_of_plain_parts_is_accepted_unchanged(checkpoint_id):
    long = any(len(part.encode()) > 255 for part in checkpoint_id.split("/"))
    if long:
        with pytest.raises(InvalidSettingError):
            check_checkpoint_id(checkpoint_id)
    else:
        assert check_checkpoint_id(checkpoint_id) == checkpoint_id


@relaxed
@given(hostile)
@example("a/" * 200 + "..")
@example("a/..\u2024/b")
def test_what_is_accepted_stays_below_its_root_and_survives_normalising(text):
    """The root of all path safety: joined and normalised, it is root + itself, to the letter."""
    for check, refusal in (
        (check_checkpoint_id, InvalidSettingError),
        (check_member, CheckpointCorruptError),
    ):
        try:
            accepted = check(text)
        except refusal:
            continue
        assert accepted == text
        assert posixpath.normpath(posixpath.join("/root", text)) == f"/root/{text}"
        assert not re.search(r"[\x00-\x1f\x7f\\]", text)


@pytest.mark.parametrize("text", ["\ud800", "a/\udfff", "x\udc80y"])
@pytest.mark.parametrize("check", [check_checkpoint_id, check_member])
def test_text_that_no_file_system_can_name_is_refused(check, text):
    """JSON can hold half of a surrogate pair; `open` would raise `UnicodeEncodeError` much later.

    `os.fsencode` takes U+DC80..U+DCFF (undecodable bytes of a name), but a manifest or an S3 key
    cannot hold them.
    """
    with pytest.raises((InvalidSettingError, CheckpointCorruptError)):
        check(text)


@relaxed
@given(ids, st.integers(1, 10**6))
def test_a_store_folder_gives_its_generation_back(checkpoint_id, number):
    assert generation_of(store_folder(checkpoint_id, number), checkpoint_id) == number


@relaxed
@given(ids, ids, st.integers(1, 99))
def test_a_folder_of_another_id_has_no_generation_here(one, other, number):
    """A failure would let one checkpoint be taken for an older generation of another."""
    if one != other and other.rpartition("@")[0] != one:
        assert generation_of(store_folder(other, number), one) is None or (
            store_folder(other, number) in {one, *(f"{one}@{n}" for n in range(200))}
        )


@pytest.mark.parametrize(
    "folder", ["a@", "a@x", "a@-1", "a@\u0661", "a@1.0", "a@ 2", "b@2", "xa", "a/b", "@2", "A"]
)
def test_a_folder_that_no_generation_made_has_none(folder):
    assert generation_of(folder, "a") is None


@relaxed
@given(st.text(max_size=80))
def test_a_slug_is_one_safe_part_of_a_key_and_stable(text):
    made = slug(text)
    assert re.fullmatch(r"[A-Za-z0-9._-]+", made)
    assert made not in {".", ".."}
    assert not made.startswith(".")
    assert slug(made) == made


@relaxed
@given(st.text(max_size=40), st.text(max_size=40), st.integers(0, 4096))
def test_a_job_prefix_has_baseten_s_five_parts_whatever_the_names(project, job, node_rank):
    """A project name with a slash in it must not open another project's folder."""
    found = job_prefix(project, job, node_rank).split("/")
    assert [found[0], found[2], found[4]] == ["training_projects", "jobs", f"rank-{node_rank}"]
    assert len(found) == 5
    assert all(part not in {"", ".", ".."} for part in found)


def test_the_prefix_of_a_named_job_is_the_one_baseten_uses():
    assert job_prefix("demo", "abc123", 2) == "training_projects/demo/jobs/abc123/rank-2"


def test_an_empty_prefix_adds_no_slash():
    assert under("", "a/b") == "a/b"
    assert under("p/q", "a") == "p/q/a"


@relaxed
@given(ids)
def test_an_accepted_id_can_be_made_a_path_of_this_machine(checkpoint_id):
    os.fsencode(checkpoint_id)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/a/b", "/a/b"),
        ("./a", "./a"),
        ("../a", "../a"),
        (".", "."),
        ("file:///a", "/a"),
        ("file://a/b", "a/b"),
        ("local:///a", "/a"),
        ("s3://bucket/a", None),
        ("memory://a", None),
    ],
)
def test_a_folder_is_told_from_a_url(url, path):
    assert plain_folder(url) == path


@pytest.mark.parametrize("url", ["", "a", "a/b", "~/a", "s3:/bucket", "key:hunter2@bucket", ".a/b"])
def test_a_path_that_may_be_a_url_without_its_scheme_is_refused(url):
    with pytest.raises(InvalidSettingError, match="s3://") as caught:
        plain_folder(url)
    assert "hunter2" not in str(caught.value)
