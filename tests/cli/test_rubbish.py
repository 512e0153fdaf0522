"""Whatever is typed, and whatever lies in a store: an exit code, and never a traceback."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bt_lightning.cli.app import main
from bt_lightning.errors import CheckpointError
from bt_lightning.layout import MANIFEST, job_prefix
from bt_lightning.store.local import LocalStore
from bt_lightning.store.publish import publish

SETTINGS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CODES = {0, 1, 2, *(kind.exit_code for kind in CheckpointError.__subclasses__()), 13, 21, 22, 27}
PREFIX = job_prefix("p", "j", 0)
hostile = st.sampled_from(
    [
        "..", "../x", "/etc/passwd", "a/../../b", "\x1b]0;x\x07", "\u202e", "\udcff", "%2e%2e",
        "bt://", "bt://p@", "bt://p@j/", "bt://p@j/../..", "bt://p/c-1/../../x", "BT://P", "s3://",
        "file://", "nope://x", "c-1@1", "c-1@9999999999999999999", "rank-0/c-1", "rank-x/c-1", ".",
        "latest", "~", "$HOME", "*", "**", "[", "c-1\n", " ", "-" * 300, "x" * 5000, "💥",
    ]
)  # fmt: skip


def can_be_an_argument(word):
    """Whether the system can hand it to a program: bytes, none of them 0."""
    try:
        return b"\0" not in os.fsencode(word)
    except UnicodeEncodeError:
        return False


words = hostile | st.text(max_size=20) | st.binary(max_size=20).map(os.fsdecode)
words = words.filter(can_be_an_argument)
COMMANDS = [
    ("checkpoints", "list", "--checkpoint-name"),
    ("checkpoints", "list", "--sort"),
    ("checkpoints", "list", "--non-interactive"),
    ("checkpoints", "show"),
    ("checkpoints", "files"),
    ("checkpoints", "verify"),
    ("checkpoints", "diff", "c-1"),
    ("checkpoints", "urls", "--checkpoint-name"),
    ("checkpoints", "protect"),
    ("checkpoints", "unprotect"),
    ("checkpoints", "delete", "--yes"),
    ("checkpoints", "delete", "--dry-run", "--keep-best"),
    ("checkpoints", "download"),
    ("checkpoints", "download", "--include"),
    ("checkpoints", "download", "--exclude"),
    ("jobs", "show"),
    ("jobs", "delete", "--yes"),
    ("projects", "show"),
    ("projects", "delete", "--dry-run"),
]

TAKES_WORD = {"--checkpoint-name", "--sort", "--keep-best", "--include", "--exclude"}


@pytest.fixture
def place(tmp_path, make, monkeypatch):
    """A store with a checkpoint, and a directory to be in, of which nothing may be left."""
    store = LocalStore(tmp_path / "store")
    made = make(tmp_path / "source", "c-1", 1)
    publish(store, PREFIX, made)
    (tmp_path / "here" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "deep")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path, store, made, make


def run(*args):
    done = CliRunner().invoke(main, list(args))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code in CODES, done.output
    assert "Traceback" not in done.output
    assert not {"\x1b", "\x07", "\u202e"}.intersection(done.output)
    return done


def outside(tmp_path):
    """Files that no command of this test may write."""
    ours = (tmp_path / "here" / "deep", tmp_path / "store", tmp_path / "source", tmp_path / "cache")
    return {
        path for path in tmp_path.rglob("*") if not any(o in (path, *path.parents) for o in ours)
    }


@given(st.sampled_from(COMMANDS), words, st.booleans())
@SETTINGS
def test_any_word_in_any_place_ends_in_a_known_way(place, command, word, as_json):
    tmp_path, store, made, _ = place
    publish(store, PREFIX, made)  # an earlier word may have deleted it
    before = outside(tmp_path)
    rest = ("--store", store.name)
    takes_json = command[1] not in {"urls", "protect", "unprotect", "download"}
    if as_json and takes_json:
        rest += ("-o", "json")
    dash = () if command[-1] in TAKES_WORD else ("--",)
    done = run(*command[:2], *rest, *command[2:], *dash, word)
    if done.exit_code and as_json and takes_json and done.stderr:
        last = [line for line in done.stderr.splitlines() if line.startswith('{"error"')]
        assert not last or json.loads(last[-1])["error"]["exit_code"] == done.exit_code
    assert outside(tmp_path) <= before


@given(st.binary(max_size=60) | st.sampled_from([b"{}", b"[]", b"null", b"[" * 9999]))
@SETTINGS
def test_any_bytes_for_a_manifest_are_left_out_and_named(place, data):
    _, store, _, _ = place
    store.put(f"{PREFIX}/bad/{MANIFEST}", data)
    done = run("checkpoints", "list", "--store", store.name, "-o", "json")
    assert [row["checkpoint_id"] for row in json.loads(done.stdout)["checkpoints"]] == ["c-1"]
    assert "left out" in done.stderr
    assert run("checkpoints", "verify", "--store", store.name).exit_code == 12


@given(st.binary(max_size=200), st.sampled_from(["m.safetensors", "m.ckpt", "m.pt", ".metadata"]))
@SETTINGS
def test_any_bytes_for_a_file_of_tensors_are_shown_or_refused(place, data, name):
    tmp_path, _, _, make = place
    root = Path(tmp_path) / "here" / "deep" / "ck"
    make(root, "c", 1, files={name: data})
    for args in (("show", "c"), ("show", "c", "-o", "json"), ("verify", "--deep")):
        run("checkpoints", *args, "--dir", str(root))
