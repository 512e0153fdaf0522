"""Files of a job that belong to no checkpoint, listed and brought back by the command line."""

from __future__ import annotations

import json

import pytest

from bt_lightning.path_layout import job_prefix
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.transfer.publish import publish


@pytest.fixture
def stored(tmp_path, make):
    """A job with a checkpoint, files of its two nodes, and what is nobody's to see."""
    store = LocalStore(tmp_path / "store")
    prefix = job_prefix("demo", "job1", 0)
    publish(store, prefix, make(tmp_path / "disk", "checkpoint-1", 1))
    store.put(f"{prefix}/logs/metrics.csv", b"step,loss\n")
    store.put(f"{prefix}/results.json", b"{}")
    store.put(f"{prefix}/empty", b"")
    store.put(f"{prefix}/.bt_lightning-files", b"owner")
    store.put(f"{job_prefix('demo', 'job1', 1)}/results.json", b"[]")
    store.put("training_projects/demo/jobs/job1/job.json", b"{}")
    return store


def run(cli, stored, command, *args, code=0):
    url = stored._root.as_uri()
    return cli("jobs", command, "job1", "--store", url, "--project", "demo", *args, code=code)


def test_files_of_all_nodes_are_listed_without_those_of_checkpoints(cli, stored):
    done = json.loads(run(cli, stored, "files", "-o", "json").stdout)
    assert done["total_files"] == 4
    assert [(f["node_rank"], f["relative_file_name"], f["size_bytes"]) for f in done["files"]] == [
        (0, "empty", 0),
        (0, "logs/metrics.csv", 10),
        (0, "results.json", 2),
        (1, "results.json", 2),
    ]
    assert "logs/metrics.csv,0,10" in run(cli, stored, "files", "-o", "csv").stdout
    table = run(cli, stored, "files", "--include", "*.json").stdout
    assert "results.json" in table
    assert "metrics.csv" not in table


def test_they_are_brought_to_a_directory_nodes_apart(cli, stored, tmp_path):
    target = tmp_path / "got"
    run(cli, stored, "download", "--target-directory", target, "--exclude", "empty")
    found = {p.relative_to(target).as_posix(): p.read_bytes() for p in target.rglob("*.*")}
    assert found == {
        "rank-0/logs/metrics.csv": b"step,loss\n",
        "rank-0/results.json": b"{}",
        "rank-1/results.json": b"[]",
    }
    assert (target / "rank-1/results.json").stat().st_mode & 0o444


def test_of_one_node_they_have_their_own_paths_and_come_again(cli, stored, tmp_path):
    stored.delete([f"{job_prefix('demo', 'job1', 1)}/results.json"])
    target = tmp_path / "got"
    for text, more in ((b"{}", ()), (b"{}", ()), (b'{"a": 1}', ("--replace",))):
        stored.put(f"{job_prefix('demo', 'job1', 0)}/results.json", text)
        run(cli, stored, "download", "--target-directory", target, *more)
        assert (target / "results.json").read_bytes() == text
    assert (target / "empty").read_bytes() == b""
    assert not list(target.rglob(".*"))


@pytest.mark.parametrize("theirs", [b"mine, and longer", b"[]", None, "link", "folder"])
def test_what_it_did_not_bring_is_not_replaced(cli, stored, tmp_path, theirs):
    """Somebody calls it in a directory of his own, where `results.json` is his work of a week."""
    stored.delete([f"{job_prefix('demo', 'job1', 1)}/results.json"])
    target = tmp_path / "got"
    target.mkdir()
    mine, outside = target / "results.json", tmp_path / "outside"
    outside.write_bytes(b"{}")
    if theirs is None:
        mine.touch()
    elif theirs == "link":
        mine.symlink_to(outside)
    elif theirs == "folder":
        mine.mkdir()
    else:
        mine.write_bytes(theirs)
    before = [mine.is_symlink(), mine.is_dir() or mine.read_bytes()]
    done = run(cli, stored, "download", "--target-directory", target, code=11)
    assert "results.json" in done.stderr
    assert [mine.is_symlink(), mine.is_dir() or mine.read_bytes()] == before
    assert not list(target.rglob(".*"))
    if theirs != b"[]":  # its size says that it is another, before anything is asked for
        assert [path.name for path in target.iterdir()] == ["results.json"]
    if theirs != "folder":
        run(cli, stored, "download", "--target-directory", target, "--replace")
        assert not mine.is_symlink()
        assert mine.read_bytes() == outside.read_bytes() == b"{}"


def test_none_is_an_error(cli, stored):
    done = run(cli, stored, "files", "--include", "nothing", code=10)
    assert "no such files of the job job1" in done.stderr


def test_nothing_is_written_through_a_link_or_out_of_the_directory(cli, stored, tmp_path):
    """A bucket takes any key, and a directory may hold anything."""
    prefix = job_prefix("demo", "job1", 0)
    (stored._root / prefix / "logs" / "..." / "a").parent.mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    target = tmp_path / "got"
    (target / "rank-0").mkdir(parents=True)
    (target / "rank-0" / "logs").symlink_to(outside)
    done = run(cli, stored, "download", "--target-directory", target, code=17)
    assert "symbolic link is in the way" in done.stderr
    assert list(outside.iterdir()) == []


def test_a_job_is_deleted_with_its_files(cli, stored):
    run(cli, stored, "delete", "--yes")
    assert [info.key for info in stored.list("")] == []


def test_a_job_of_files_only_is_deleted_too(cli, tmp_path):
    store = LocalStore(tmp_path / "store")
    store.put(f"{job_prefix('demo', 'job1', 0)}/run.log", b"x")
    run(cli, store, "delete", "--yes")
    assert [info.key for info in store.list("")] == []


def test_files_do_not_disturb_the_list_of_checkpoints(cli, stored):
    done = cli(
        "checkpoints",
        "list",
        "--store",
        stored._root.as_uri(),
        "--project",
        "demo",
        "--job-id",
        "job1",
        "-o",
        "json",
    )
    assert [c["checkpoint_id"] for c in json.loads(done.stdout)["checkpoints"]] == ["checkpoint-1"]
