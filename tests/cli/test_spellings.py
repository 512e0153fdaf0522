"""Spellings and outputs of `truss train` and `baseten train`, and what is found unnamed."""

from __future__ import annotations

import ast
import json
import re
import shutil

import click
import pytest

from bt_lightning.cli.app import main
from bt_lightning.cli.commands.train import train
from bt_lightning.cli.groups import respelled
from bt_lightning.cli.names_elsewhere import NAMES
from bt_lightning.config_file.load_config import load_config
from bt_lightning.path_layout import job_prefix
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.transfer.publish import publish


@pytest.fixture
def store(make, tmp_path):
    """A store with a job of two checkpoints."""
    place = tmp_path / "store"
    for step in (20, 100):
        make(place / "training_projects/p/jobs/j/rank-0", f"checkpoint-{step}", step)
    return place


def test_what_saved_here_is_found_without_a_name(cli, make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "nothing is saved in ./bt_checkpoints" in cli("checkpoints", "list", code=2).stderr
    make(tmp_path / "bt_checkpoints", "checkpoint-1", 1)
    assert "checkpoint-1" in cli("checkpoints", "list").stdout
    shutil.rmtree(tmp_path / "bt_checkpoints")
    for job in ("old", "new"):
        make(tmp_path / "bt_checkpoints" / job, f"checkpoint-{job}", 1)
    (tmp_path / "bt_checkpoints/new/.bt_lightning/later").touch()
    done = cli("checkpoints", "list")
    assert "checkpoint-new" in done.stdout
    assert "2 directories in ./bt_checkpoints: this is new" in done.stderr
    assert "checkpoint-old" in cli("checkpoints", "list", "--job-id", "old").stdout
    assert "whole" in cli("checkpoints", "verify", "checkpoint-new").stdout
    assert str(tmp_path / "bt_checkpoints" / "new") in cli("status").stdout
    assert "bt_checkpoints" in cli("jobs", "stop", code=10).stderr


def test_outputs_of_baseten(cli, store):
    lines = cli("checkpoint", "list", "--output", "jsonl", "--store", store).stdout.splitlines()
    assert [json.loads(line)["checkpoint_id"] for line in lines] == [
        "checkpoint-20",
        "checkpoint-100",
    ]
    assert cli("checkpoints", "list", "-o", "none", "--store", store).stdout == ""
    table = cli("checkpoints", "list", "-o", "text", "--store", store).stdout
    assert table == cli("checkpoints", "list", "-o", "cli-table", "--store", store).stdout
    assert len(cli("checkpoints", "show", "-o", "jsonl", "--store", store).stdout.splitlines()) == 1
    error = cli("checkpoints", "show", "no", "-o", "jsonl", "--store", store, code=10).stderr
    assert json.loads(error)["error"]["exit_code"] == 10
    assert cli("jobs", "list", "--store", store, "-ocsv").stdout.startswith("Project,Job ID")


def test_the_commands_of_baseten_and_truss(cli, store):
    newest_first = cli("train", "checkpoint", "list", "--job-id", "j", "--store", store).stdout
    assert newest_first.index("checkpoint-100") < newest_first.index("checkpoint-20")
    oldest = ("--direction", "asc", "--remote", "r", "--profile=x")
    done = cli("train", "checkpoint", "list", "--job-id", "j", "--store", store, *oldest)
    assert done.stdout.index("checkpoint-20") < done.stdout.index("checkpoint-100")
    assert "left out: --remote, --profile" in done.stderr
    files = cli("train", "checkpoint", "files", "--job-id=j", "--store", store).stdout
    assert "checkpoint-20/trainer.json" in files
    rows = cli("train", "checkpoint", "files", "--store", store, "--output", "jsonl").stdout
    assert {json.loads(row)["node_rank"] for row in rows.splitlines()} == {0}
    urls = json.loads(cli("train", "get_checkpoint_urls", "--store", store).stdout)
    assert len(urls["checkpoint_artifacts"]) == 2
    listed = cli("train", "view", "--store", store, "--project-id", "p").stdout
    assert listed == cli("job", "list", "--store", store, "--project", "p").stdout
    shown = cli("train", "view", "--store", store, "--job-id", "j").stdout
    assert shown == cli("job", "describe", "--job-id", "j", "--store", store).stdout
    assert "p" in cli("train", "project", "list", "--store", store).stdout
    assert "use ssh" in cli("train", "isession", "--job-id", "j", code=2).stderr


def test_what_means_nothing_here_is_answered(cli, store):
    answer = cli("jobs", "list", "--remote", "baseten", "--store", store, code=2).stderr
    assert "works on a store (--store)" in answer
    answer = cli("checkpoints", "list", "--store", store, "-q", ".x", code=2).stderr
    assert "| jq" in answer
    assert "No such option" in cli("checkpoints", "list", "--stoer", store, code=2).stderr


def test_the_argument_after_dashes_is_not_respelled():
    run = main.commands["run"]
    words = ["--project", "p", "--", "python", "t.py", "--job-id", "7", "--output", "x"]
    assert respelled(run, words) == words


def test_the_table_names_commands_that_exist():
    def exists(group, words):
        for word in words:
            group = group.get_command(click.Context(group), word)
            if group is None or not isinstance(group, click.Group):
                return group is not None
        return True

    service = {"capacity", "update", "isession", "update_session", "workstation"}
    for truss, baseten, ours, _ in NAMES:
        for name in (truss, baseten):
            words = [word for word in name.split() if re.fullmatch("[a-z_]+", word)]
            assert not words or words[0] in service or not ours or exists(train, words), name
        group = ""
        for name in filter(None, ours.split(", ")):
            words = [word for word in name.split() if re.fullmatch("[a-z]+", word)]
            group = words[0] if len(words) > 1 else group
            assert exists(
                main, words if len(words) > 1 or words[0] in main.commands else [group, *words]
            ), name


def test_each_help_is_a_whole_sentence():
    def commands(group):
        for command in group.commands.values():
            yield command
            if isinstance(command, click.Group):
                yield from commands(command)

    for command in commands(main):
        first = (command.help or "").split("\n\n")[0]
        assert re.fullmatch(r"[A-Z].*\.", first, re.DOTALL), (command.name, first)
        assert not command.get_short_help_str(1000).endswith("...")


def test_a_starter_asks_nothing_and_is_a_job(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = cli("init", "mine", "--project", 'a "b" \\', "--accelerator", "L4:2")
    assert "bt-lightning run config.py" in done.stdout
    project = load_config(tmp_path / "mine" / "config.py")
    assert project.name == 'a "b" \\'
    assert project.job.runtime.checkpointing_config.enabled
    assert project.job.runtime.start_commands[-1] == "python train.py"
    ast.parse((tmp_path / "mine" / "train.py").read_text())
    assert "--force" in cli("train", "init", "--target-directory", "mine", code=11).stderr
    cli("init", "mine", "--force")
    cli("init", "other names", "--project", "\U0001f525")
    assert load_config(tmp_path / "other names" / "config.py").name == "\U0001f525"
    assert "H100:2" in cli("init", "other", "--accelerator", "8 GPUs", code=2).stderr
    assert not (tmp_path / "other").exists()


def test_a_cache_is_summarized(cli, tmp_path, monkeypatch):
    assert "CacheConfig" in cli("cache", "summarize", "--path", tmp_path / "no", code=10).stderr
    place = tmp_path / "user_artifacts"
    (place / "hub" / ".locks").mkdir(parents=True)
    (place / "hub" / "big").write_bytes(b"x" * 3000)
    (place / "hub" / ".locks" / "a").write_bytes(b"y" * 10)
    (place / "link").symlink_to(tmp_path)
    said = cli("cache", "summarize", "p", "--path", place, "-o", "json", "--sort", "size").stdout
    told = json.loads(said)
    sizes = {row["path"]: (row["size_bytes"], row["type"]) for row in told["files"]}
    assert sizes["hub"] == (3010, "directory")
    assert sizes["hub/.locks/a"] == (10, "file")
    assert sizes["link"][1] == "symlink"
    assert told["total_files"] == 3
    assert told["project_id"] == "p"
    assert [row["size_bytes"] for row in told["files"]] == sorted(
        size for size, _ in sizes.values()
    )
    monkeypatch.setenv("BT_RW_CACHE_DIR", str(tmp_path))
    done = cli("train", "project", "cache", "describe", "--project", "p", "--sort", "path")
    assert "hub/big" in done.stdout


def test_the_cache_of_manifests_is_shown_and_deleted(cli, tmp_path, monkeypatch, make):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = LocalStore(tmp_path / "store")
    publish(store, job_prefix("p", "j", 0), make(tmp_path / "ck", "checkpoint-1", 1))
    assert "0 files" in cli("cache", "manifests").stdout
    cli("checkpoints", "list", "--all-jobs", "--store", store.name)
    (file,) = (tmp_path / "cache" / "bt_lightning").glob("manifests-*")
    told = json.loads(cli("cache", "manifests", "-o", "json").stdout)
    assert told["total_files"] == 1
    assert told["total_size_bytes"] == file.stat().st_size < told["most_size_bytes"]
    assert "were deleted" in cli("cache", "manifests", "--delete").stdout
    assert not file.exists()
    assert cli("cache", "manifests", "-o", "csv").stdout.count("\n") == 2
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.delenv("HOME", raising=False)
    assert "XDG_CACHE_HOME" in cli("cache", "manifests", code=2).stderr
