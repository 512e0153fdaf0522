"""`show`, `files`, `diff`, `urls`: what is in a checkpoint, and what differs between two."""

from __future__ import annotations

import json
import stat
import urllib.request

import pytest
import torch
from safetensors.torch import save

from bt_lightning.localdir.protection import protect_local
from bt_lightning.path_layout import job_prefix
from bt_lightning.protection_record import Protection
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.transfer.publish import publish

ENV = {"BT_TRAINING_JOB_ID": "j1"}


def weights(**changed):
    state = {
        "encoder.0.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
        "encoder.0.bias": torch.zeros(3),
        "head.weight": torch.ones(2, 3, dtype=torch.bfloat16),
    }
    return {"model.safetensors": save({**state, **changed}), "trainer.json": b"{}"}


@pytest.fixture
def root(tmp_path, make):
    made = make(tmp_path / "ck", "checkpoint-10", 10, files=weights())
    protect_local(made.path, Protection(by="ada", why="best", at="2026-01-02T03:04:05+00:00"))
    make(tmp_path / "ck", "checkpoint-20", 20, files=weights(**{"head.weight": torch.zeros(2, 3)}))
    return tmp_path / "ck"


def test_the_screen_of_a_checkpoint(cli, root, golden):
    said = cli("checkpoints", "show", "checkpoint-10", "--dir", root, env=ENV).stdout
    golden("show.txt", said, root)
    said = cli("checkpoints", "show", "checkpoint-10", "--dir", root, "--tensors", env=ENV).stdout
    golden("show-tensors.txt", said, root)


def test_show_as_json_is_the_newest_if_nothing_is_named(cli, root, golden):
    done = cli("checkpoints", "show", "--dir", root, "-o", "json", env=ENV)
    golden("show.json", done.stdout, root)
    assert json.loads(done.stdout)["checkpoint_id"] == "checkpoint-20"
    rows = cli("checkpoints", "show", "--dir", root, "-o", "csv", env=ENV).stdout.splitlines()
    assert len(rows) == 4


def test_files_in_each_format(cli, root, golden):
    golden("files.txt", cli("checkpoints", "files", "checkpoint-10", "--dir", root).stdout)
    said = json.loads(cli("checkpoints", "files", "--dir", root, "-o", "json").stdout)
    assert [row["path"] for row in said["files"]] == ["model.safetensors", "trainer.json"]
    rows = cli("checkpoints", "files", "--dir", root, "-o", "csv").stdout.splitlines()
    assert rows[0].startswith("path,size_bytes")


def test_a_checkpoint_of_a_store_is_shown_by_its_url(cli, root, tmp_path, make):
    store = LocalStore(tmp_path / "store")
    publish(store, job_prefix("p", "j", 0), make(tmp_path / "x", "c-1", 1, files=weights()))
    done = cli("checkpoints", "show", "bt://p@j/c-1", "--store", store.name, "-o", "json")
    said = json.loads(done.stdout)
    assert said["job_id"] == "j"
    assert len(said["tensors"]) == 3
    assert said["location"].endswith("/jobs/j/rank-0/c-1")


def test_a_damaged_file_is_named_and_the_rest_shown(cli, tmp_path, make):
    make(tmp_path, "c", 1, files={"a.safetensors": b"x" * 50, **weights()})
    done = cli("checkpoints", "show", "c", "--dir", tmp_path)
    assert "c/a.safetensors" in done.stderr
    assert "3 tensors" in done.stdout


def test_diff_names_what_changed_and_ends_with_1(cli, root, tmp_path, make, golden):
    done = cli("checkpoints", "diff", "checkpoint-10", "--dir", root, code=1)
    golden("diff.txt", done.stdout)
    other = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    other[2, 3] = 7
    changed = weights(**{"encoder.0.weight": other, "new": torch.ones(1)})
    make(root, "checkpoint-30", 30, files=changed)
    args = ("checkpoint-10", "checkpoint-30", "--dir", root, "-o", "json")
    found = json.loads(cli("checkpoints", "diff", *args, code=1).stdout)["differences"]
    assert {d["name"]: d["kind"] for d in found} == {"encoder.0.weight": "changed", "new": "added"}
    same = cli("checkpoints", "diff", "checkpoint-10", "checkpoint-10", "--dir", root)
    assert "the same" in same.stdout


def test_urls_have_the_keys_of_truss_and_can_be_read(cli, root, tmp_path, make):
    store = LocalStore(tmp_path / "store")
    publish(store, job_prefix("p", "j", 0), make(tmp_path / "x", "c-1", 1))
    said = json.loads(cli("checkpoints", "urls", "--store", store.name).stdout)
    assert set(said) == {"timestamp", "job", "checkpoint_artifacts"}
    [row] = said["checkpoint_artifacts"]
    assert set(row) == {
        "url", "relative_file_name", "node_rank", "size_bytes", "last_modified",
    }  # fmt: skip
    assert row["relative_file_name"] == "c-1/trainer.json"
    with urllib.request.urlopen(row["url"]) as answer:
        assert len(answer.read()) == row["size_bytes"]
    file = tmp_path / "urls.json"
    file.write_text("old")
    file.chmod(0o644)
    cli("checkpoints", "urls", "--dir", root, "--checkpoint-name", "latest", "--output", file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(json.loads(file.read_text())["checkpoint_artifacts"]) == 2


def test_escape_sequences_in_names_of_files_tensors_and_reasons_stay_out_of_the_terminal(
    cli, tmp_path, make
):
    evil = "\x1b[31mred\x07\u202e"
    make(tmp_path, "c", 1, files={"m.safetensors": save({evil: torch.ones(1)})})
    protect_local(tmp_path / "c", Protection(by=evil, why=evil))
    csv = ("show", "c", "-o", "csv")
    for args in (("show", "c", "--tensors"), ("show", "c"), ("files", "c"), ("list",), csv):
        said = cli("checkpoints", *args, "--dir", tmp_path).output
        assert not {"\x1b", "\x07", "\u202e"}.intersection(said)
