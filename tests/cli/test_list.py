"""`checkpoints list`: Baseten's options, columns and keys, and what we add."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest

from bt_lightning.localdir.job_id_file import note_job
from bt_lightning.path_layout import PROTECTION, job_prefix
from bt_lightning.protection_record import Protection
from bt_lightning.runtime.job_resources import newest_checkpoint
from bt_lightning.settings import Job, Settings
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.catalog.projects import view_job
from bt_lightning.store.transfer.publish import publish

ADAPTER = {"base_model_name_or_path": "meta/llama", "r": 8}


@pytest.fixture
def root(tmp_path, make):
    folder = tmp_path / "ck"
    for step in (20, 100, 3):
        make(folder, f"checkpoint-{step}", step)
    return folder


@pytest.fixture
def store(tmp_path, make):
    """Two jobs of one project, and one of another; `late` began last."""
    store = LocalStore(tmp_path / "store")
    files = {"adapter_config.json": json.dumps(ADAPTER).encode(), "adapter_model.safetensors": b"x"}
    for project, job, steps in (("demo", "early", (1, 2, 11)), ("demo", "late", (30,))):
        for step in steps:
            made = make(tmp_path / job, f"checkpoint-{step}", step)
            publish(store, job_prefix(project, job, 0), made)
    made = make(tmp_path / "o", "lora", 7, files=files, metrics={"acc": 0.5, "loss": math.nan})
    publish(store, job_prefix("other", "tune", 0), made)
    return store


def listed(done):
    return json.loads(done.stdout)["checkpoints"]


def names(done):
    return [row["checkpoint_id"] for row in listed(done)]


def test_the_table_of_a_directory(cli, root, golden):
    golden(
        "list-directory.txt",
        cli("checkpoints", "list", "--dir", root, env={"BT_TRAINING_JOB_ID": "j1"}).stdout,
    )


def test_json_of_a_job_has_the_keys_of_baseten_and_ours(cli, store, golden):
    done = cli("checkpoints", "list", "--store", store.name, "--job-id", "tune", "-o", "json")
    golden("list-job.json", done.stdout)
    row = listed(done)[0]
    assert row["lora_adapter_config"] == ADAPTER
    assert row["metrics"] == {"acc": 0.5, "loss": "NaN"}


def test_csv_holds_the_same_as_json(cli, root):
    rows = listed(cli("checkpoints", "list", "--dir", root, "-o", "json"))
    text = cli("checkpoints", "list", "--dir", root, "-o", "csv").stdout
    cells = list(csv.DictReader(io.StringIO(text)))
    assert [cell["Checkpoint Name"] for cell in cells] == [row["checkpoint_id"] for row in rows]
    assert [int(cell["Size (bytes)"]) for cell in cells] == [row["size_bytes"] for row in rows]
    assert [json.loads(cell["Metrics"]) for cell in cells] == [row["metrics"] for row in rows]


@pytest.mark.parametrize(
    ("by", "steps"),
    [
        ("checkpoint-id", [3, 20, 100]),
        ("created", [3, 20, 100]),
        ("size", [3, 20, 100]),
        ("step", [3, 20, 100]),
        ("type", [3, 20, 100]),
        ("metric:val_loss", [100, 20, 3]),
    ],
)
def test_each_sort_works_both_ways(cli, root, by, steps):
    for order, expected in (("asc", steps), ("desc", steps[::-1] if by != "type" else steps)):
        found = names(
            cli("checkpoints", "list", "--dir", root, "-ojson", "--sort", by, "--order", order)
        )
        assert found == [f"checkpoint-{step}" for step in expected]


def test_what_lacks_the_metric_or_has_none_of_it_comes_last_either_way(cli, tmp_path, make):
    for step, metrics in enumerate([{"m": 2.0}, {}, {"m": math.nan}, {"m": 1.0}], 1):
        make(tmp_path, f"c{step}", step, metrics)
    for order, expected in (("asc", ["c4", "c1"]), ("desc", ["c1", "c4"])):
        args = ("--dir", tmp_path, "-ojson", "--sort", "metric:m", "--order", order)
        assert names(cli("checkpoints", "list", *args))[:2] == expected


def test_without_a_job_the_one_that_began_last_is_shown_and_that_is_said(cli, store):
    done = cli("checkpoints", "list", "--store", store.name, "-o", "json")
    assert json.loads(done.stdout)["job_id"] == "late"
    assert "3 jobs" in done.stderr
    only = cli("checkpoints", "list", "--store", store.name, "--project", "other", "-o", "json")
    assert json.loads(only.stdout)["job_id"] == "tune"
    assert not only.stderr


def test_all_jobs_of_the_store_or_of_a_project(cli, store, golden):
    done = cli("checkpoints", "list", "--store", store.name, "--all-jobs")
    golden("list-all-jobs.txt", done.stdout)
    args = ("--store", store.name, "--project", "demo", "--all-jobs", "-ojson")
    rows = listed(cli("checkpoints", "list", *args))
    assert {row["job_id"] for row in rows} == {"early", "late"}


def test_one_checkpoint_by_name_or_by_url(cli, store):
    one = cli(
        "checkpoints", "list", "bt://demo@early/checkpoint-2", "--store", store.name, "-ojson"
    )
    assert names(one) == ["checkpoint-2"]
    args = ("--store", store.name, "--job-id", "early", "--checkpoint-name", "latest", "-ojson")
    assert names(cli("checkpoints", "list", *args)) == ["checkpoint-11"]
    args = ("--store", store.name, "--job-id", "early", "--checkpoint-name", "checkpoint-3")
    done = cli("checkpoints", "list", *args, code=10)
    assert "checkpoint-2" in done.stderr


def test_a_directory_and_its_store_tell_what_is_not_uploaded_yet(cli, root, tmp_path, make):
    store = LocalStore(tmp_path / "store")
    publish(store, Job.named(Settings(), str(root)).prefix, make(root, "checkpoint-7", 7))
    done = cli("checkpoints", "list", "--dir", root, "--store", store.name, "-ojson")
    status = {row["checkpoint_id"]: row["sync_status"] for row in listed(done)}
    assert status.pop("checkpoint-7") == "COMPLETE"
    assert set(status.values()) == {"SYNCING"}
    assert len(status) == 3


def test_protected_ones_are_told_from_the_others(cli, store):
    base = f"{job_prefix('demo', 'early', 0)}/checkpoint-2"
    store.put(f"{base}/{PROTECTION}", Protection(by="ada").to_bytes())
    done = cli("checkpoints", "list", "--store", store.name, "--job-id", "early", "-ojson")
    assert [row["checkpoint_id"] for row in listed(done) if row["protected"]] == ["checkpoint-2"]


def test_two_nodes_with_one_id_are_told_apart(cli, tmp_path, make):
    store = LocalStore(tmp_path / "store")
    for rank in (0, 1):
        made = make(tmp_path / str(rank), "checkpoint-5", 5, metrics={"rank": rank})
        publish(store, job_prefix("p", "j", rank), made)
    done = cli("checkpoints", "list", "--store", store.name, "-ojson")
    assert sorted(names(done)) == ["checkpoint-5", "rank-1/checkpoint-5"]


def test_nothing_committed_is_said_in_words(cli, tmp_path):
    job = Job.named(Settings(), str(tmp_path)).job
    said = cli("checkpoints", "list", "--dir", tmp_path).stdout
    assert said == f"No checkpoints found for job: {job}.\n"
    empty = json.loads(cli("checkpoints", "list", "--dir", tmp_path, "-ojson").stdout)
    assert empty == {"job_id": job, "total_checkpoints": 0, "checkpoints": []}
    assert cli("checkpoints", "list", "--dir", tmp_path, "-ocsv").stdout.count("\n") == 1


def test_errors_are_json_where_json_was_asked_for(cli, tmp_path):
    for args, kind, code in (
        (("--dir", tmp_path / "none"), "InvalidSettingError", 2),
        (("--dir", tmp_path, "--order", "up"), "UsageError", 2),
        (("--dir", tmp_path, "--checkpoint-name", "x"), "CheckpointNotFoundError", 10),
    ):
        done = cli("checkpoints", "list", *args, "-o", "json", code=code)
        said = json.loads(done.stderr)["error"]
        assert (said["type"], said["exit_code"]) == (kind, code)
        assert not done.stdout


def test_a_cell_never_begins_a_formula(cli, tmp_path, make):
    make(tmp_path, "=cmd|' /C calc'!A0", 1)
    text = cli("checkpoints", "list", "--dir", tmp_path, "-o", "csv").stdout
    assert next(csv.DictReader(io.StringIO(text)))["Checkpoint Name"].startswith("'=")


@pytest.mark.parametrize("by", ["nonsense", "metric:", "metric", ""])
def test_what_nothing_can_be_sorted_by_is_refused_before_anything_is_read(cli, tmp_path, by):
    done = cli("checkpoints", "list", "--dir", tmp_path / "none", "--sort", by, code=2)
    assert "cannot sort by" in done.stderr


def test_a_metric_that_no_checkpoint_has_is_refused_with_those_that_there_are(cli, root, store):
    for place in (("--dir", root), ("--store", store.name), ("--store", store.name, "--all-jobs")):
        done = cli("checkpoints", "list", *place, "--sort", "metric:nope", code=2)
        assert "no checkpoint has the metric 'nope'" in done.stderr
        assert "val_loss" in done.stderr


def test_an_unknown_job_is_not_found_with_its_project_or_without(cli, store):
    place = ("--store", store.name, "--job-id", "nobody")
    for project in ((), ("--project", "demo"), ("--project", "nobody")):
        for command in (("list",), ("show",), ("verify",)):
            done = cli("checkpoints", *command, *place, *project, code=10)
            assert "nobody" in done.stderr
        cli("jobs", "show", "nobody", "--store", store.name, *project, code=10)
    store.put("training_projects/demo/jobs/begun/rank-0/.bt_lightning-lease/1", b"{}")
    place = ("--store", store.name, "--project", "demo", "--job-id", "begun")
    done = cli("checkpoints", "list", *place)
    assert "No checkpoints found" in done.stdout


def test_a_directory_has_the_job_id_that_its_run_had(cli, root, monkeypatch):
    note_job(root, job_prefix("demo", "night-7", 1))
    rows = json.loads(cli("checkpoints", "list", "--dir", root, "-ojson").stdout)["checkpoints"]
    assert {row["job_id"] for row in rows} == {"night-7"}
    monkeypatch.setenv("BT_TRAINING_JOB_ID", "named")
    rows = json.loads(cli("checkpoints", "list", "--dir", root, "-ojson").stdout)["checkpoints"]
    assert {row["job_id"] for row in rows} == {"named"}


@pytest.mark.parametrize("note", [b"", b"[]", b"{}", b'{"project": 1, "job": []}', b"[" * 9999])
def test_a_note_of_the_job_that_cannot_be_read_is_none(cli, root, note):
    (root / ".bt_lightning").mkdir(exist_ok=True)
    (root / ".bt_lightning" / "job-name.json").write_bytes(note)
    done = cli("checkpoints", "list", "--dir", root, "-ojson")
    assert json.loads(done.stdout)["checkpoints"][0]["job_id"].startswith(f"{root.name}-")


def test_the_latest_of_several_fits_is_of_the_one_that_saved_last(cli, make, tmp_path):
    root, store, later = tmp_path / "ck", tmp_path / "store", {"fit": {"id": "fit-2"}}
    made = [make(root, "checkpoint-1441", 1441), make(root, "checkpoint-1443", 1443)]  # 00:03
    made += [make(root, f"fit-2/checkpoint-{n}", n, origin=later) for n in (10, 20)]  # 00:20
    for found in made:
        publish(LocalStore(store), job_prefix("p", "j", 0), found)
    for place in (["--dir", str(root)], ["--store", str(store), "--project", "p"]):
        assert "fit-2/checkpoint-20" in cli("checkpoints", "show", "latest", *place).output
    found = view_job(LocalStore(store), "p").latest()
    assert found.checkpoint_id == "fit-2/checkpoint-20"
    assert newest_checkpoint(root) == ("fit-2/checkpoint-20", 20)
