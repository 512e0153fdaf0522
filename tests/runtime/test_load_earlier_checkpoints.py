"""What is loaded before a job: which checkpoint a name means, and how it lies on the disk."""

from __future__ import annotations

import pytest

from bt_lightning.errors import CheckpointNotFoundError, InvalidSettingError
from bt_lightning.job_record import JobRecord
from bt_lightning.localdir.commit import commit
from bt_lightning.localdir.list_and_verify_checkpoints import LocalCheckpoint
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import MANIFEST, job_prefix
from bt_lightning.runtime.load_earlier_checkpoints import parse_reference, resolve
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.catalog.job_records import write_record
from bt_lightning.store.transfer.publish import publish

pytestmark = pytest.mark.matrix


@pytest.fixture
def store(tmp_path):
    """Two projects; in `p` the job `new` began last, though `old` has the higher step."""
    made = LocalStore(tmp_path / "store")

    def put(project, job, node, name, step, minute):
        root = tmp_path / "made" / project / job / str(node)

        def describe(entries):
            return Manifest(
                checkpoint_id=name,
                generation=1,
                step=step,
                epoch=0,
                created_at=f"2026-01-02T03:{minute:02d}:05+00:00",
                files=entries,
            )

        files = {"trainer.json": lambda: iter([b"%d" % (1000 * step + node)])}
        local = LocalCheckpoint(root / name, commit(root / name, root, files, describe))
        publish(made, job_prefix(project, job, node), local)

    put("p", "old", 0, "checkpoint-90", 90, 1)
    put("p", "new", 0, "checkpoint-9", 9, 11)
    put("p", "new", 0, "checkpoint-20", 20, 12)
    put("p", "new", 1, "checkpoint-20", 20, 12)
    put("q", "other", 0, "a/checkpoint-7", 7, 3)
    put("q", "new", 0, "checkpoint-1", 1, 2)
    return made


def names(store, text, project="p", job="mine", node=0):
    found = resolve(store, parse_reference(text), project, job, node)
    return [
        f"{one.location.job}/rank-{one.location.node_rank}/{one.checkpoint_id}" for one in found
    ]


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("latest", ["new/rank-0/checkpoint-20"]),
        ("old", ["old/rank-0/checkpoint-90"]),
        ("new", ["new/rank-0/checkpoint-20"]),
        ("new/checkpoint-9", ["new/rank-0/checkpoint-9"]),
        ("other", ["other/rank-0/a/checkpoint-7"]),
        ("other/a/checkpoint-7", ["other/rank-0/a/checkpoint-7"]),
        ("bt://q@new", ["new/rank-0/checkpoint-1"]),
        ("bt://q", ["other/rank-0/a/checkpoint-7"]),
    ],
)
def test_a_name_means_what_it_means_on_baseten(store, text, means):
    assert names(store, text) == means


def test_the_latest_job_is_never_the_one_that_asks(store):
    assert names(store, "latest", job="new") == ["old/rank-0/checkpoint-90"]


def test_every_node_gets_its_own_and_that_of_the_first(store):
    assert sorted(names(store, "new", node=1)) == [
        "new/rank-0/checkpoint-20",
        "new/rank-1/checkpoint-20",
    ]
    assert names(store, "new", node=2) == ["new/rank-0/checkpoint-20"]


def test_the_record_says_which_job_began_last(store):
    """Retention deleted the first checkpoints of `old`, so their times tell nothing."""
    record = JobRecord(
        project="p",
        job_id="old",
        job_name="",
        node_rank=0,
        group_size=1,
        host="h",
        status="COMPLETED",
        checkpoint_sync_status="COMPLETED",
        created_at="2027-01-01T00:00:00+00:00",
        updated_at="",
    )
    write_record(store, job_prefix("p", "old", 0), record)
    assert names(store, "latest") == ["old/rank-0/checkpoint-90"]


@pytest.mark.parametrize("text", ["none", "new/checkpoint-8", "bt://none", "bt://p@new/x"])
def test_what_is_not_there_is_named(store, text):
    with pytest.raises(CheckpointNotFoundError):
        names(store, text)


def test_a_job_of_two_projects_must_be_named_with_one(store):
    with pytest.raises(InvalidSettingError, match="in the projects p, q"):
        names(store, "new", project="r")


def test_references_lie_as_on_baseten_before_the_command_runs(runner, store):
    words = ("--store", store.name, "--project", "p", "--job-id", "mine", "--load", "new")
    script = 'cd "$BT_LOAD_CHECKPOINT_DIR" && find . -name trainer.json | sort'
    more = ("--load", "other", "--load-dir", runner.path / "in")
    out, err = runner(*words, *more, "--", "sh", "-c", script)
    assert out.split() == [
        "./new/rank-0/checkpoint-20/trainer.json",
        "./other/rank-0/a/checkpoint-7/trainer.json",
    ]
    assert "loaded checkpoint-20 of the job new" in err
    assert not list((runner.path / "in").rglob(".bt_lightning"))


def test_what_is_there_is_kept_and_what_is_damaged_is_brought_again(runner, store):
    words = ("--store", store.name, "--load", "new", "--load-dir", runner.path / "in", "--", "true")
    runner("--project", "p", *words)
    place = runner.path / "in/new/rank-0/checkpoint-20"
    before = (place / MANIFEST).stat().st_ino
    runner("--project", "p", *words)
    assert (place / MANIFEST).stat().st_ino == before
    (place / "trainer.json").write_bytes(b"rubbish")
    runner("--project", "p", *words)
    assert (place / "trainer.json").read_bytes() == b"20000"


def test_what_else_lies_there_is_said(runner, store):
    words = ("--store", store.name, "--project", "p", "--load-dir", runner.path / "in")
    runner(*words, "--load", "old", "--", "true")
    _, err = runner(*words, "--load", "new", "--", "true")
    assert "old/rank-0/checkpoint-90 lies in the load directory as well" in err


def test_a_damaged_checkpoint_ends_the_job_before_it_begins(runner, store, tmp_path):
    place = tmp_path / "store" / job_prefix("p", "new", 0) / "checkpoint-20" / "trainer.json"
    place.write_bytes(b"20001")
    words = ("--store", store.name, "--project", "p", "--job-id", "j", "--load", "new")
    out, err = runner(*words, "--load-dir", "in", "--", "echo", "ran", code=12)
    assert out == ""
    assert "damaged" in err
    assert runner.record()["status"] == "FAILED"
