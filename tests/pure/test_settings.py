"""Settings come from the mapping that is passed in, and names of jobs stay what they are."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bt_lightning.errors import InvalidSettingError
from bt_lightning.settings import Job, Settings
from bt_lightning.worker_messages import WorkerConfig

relaxed = settings(deadline=None, database=None)

FULL = {
    "BT_CHECKPOINT_DIR": "/mnt/ckpts",
    "BT_LOAD_CHECKPOINT_DIR": "/tmp/loaded",
    "BT_STORE_URL": "s3://bucket/runs",
    "BT_TRAINING_PROJECT_NAME": "demo",
    "BT_TRAINING_PROJECT_ID": "p1",
    "BT_TRAINING_JOB_ID": "j1",
    "BT_NODE_RANK": "3",
}


def test_every_variable_of_the_platform_is_read():
    assert Settings.from_environ(FULL) == Settings(
        checkpoint_dir="/mnt/ckpts",
        load_dir="/tmp/loaded",
        store_url="s3://bucket/runs",
        project="demo",
        job="j1",
        node_rank=3,
    )


def test_without_variables_nothing_is_set_and_this_is_node_0():
    assert Settings.from_environ({}) == Settings()


def test_an_empty_variable_counts_as_unset():
    """Platforms export variables that they have no value for."""
    assert Settings.from_environ(dict.fromkeys(FULL, "")) == Settings()


def test_the_project_s_id_stands_in_for_its_name():
    environ = {**FULL, "BT_TRAINING_PROJECT_NAME": ""}
    assert Settings.from_environ(environ).project == "p1"


def test_the_environment_of_this_process_is_not_read():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in FULL.items():
            patch.setenv(name, value)
        assert Settings.from_environ({}) == Settings()


@pytest.mark.parametrize(
    "value", ["-1", "1.0", "x", " 1", "1 ", "0x1", "\u0663", "+1", "1e3", "None"]
)
def test_a_node_rank_that_is_no_count_is_named_in_the_error(value):
    """A wrong rank would make two nodes write into one folder of the store."""
    with pytest.raises(InvalidSettingError, match="BT_NODE_RANK") as caught:
        Settings.from_environ({"BT_NODE_RANK": value})
    assert repr(value) in str(caught.value)


@relaxed
@given(st.integers(0, 10**6))
def test_a_node_rank_that_is_a_count_is_taken(number):
    assert Settings.from_environ({"BT_NODE_RANK": str(number)}).node_rank == number


def test_a_named_job_is_called_what_the_platform_calls_it():
    job = Job.named(Settings.from_environ(FULL), "/mnt/ckpts")
    assert job == Job(project="demo", job="j1", node_rank=3)
    assert job.prefix == "training_projects/demo/jobs/j1/rank-3"


def test_a_job_without_a_name_is_called_after_its_directory_for_all_time():
    """Written out on purpose: with another name a restarted run would not find its checkpoints."""
    job = Job.named(Settings(), "/data/my run/checkpoints")
    assert job.prefix == "training_projects/default/jobs/checkpoints-9fdf1823/rank-0"


@pytest.mark.parametrize(
    "spelling", ["/data/x/", "/data/./x", "/data/y/../x", "/data//x", "/data/x/."]
)
def test_the_spelling_of_a_directory_does_not_rename_its_job(spelling):
    """A restarted run with another spelling would start afresh beside its own checkpoints."""
    assert Job.named(Settings(), spelling) == Job.named(Settings(), "/data/x")


def test_a_relative_directory_is_the_same_job_as_its_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Job.named(Settings(), "ckpt") == Job.named(Settings(), os.fspath(tmp_path / "ckpt"))


@relaxed
@given(
    st.lists(st.sampled_from(["a", "b", "a-b", "a b", "x"]), min_size=2, max_size=2, unique=True)
)
def test_two_directories_are_two_jobs_even_if_their_slugs_are_equal(names):
    one, other = (Job.named(Settings(), f"/data/{name}") for name in names)
    assert one.prefix != other.prefix


@pytest.mark.parametrize("length", [1, 245, 246, 247, 255])
def test_a_directory_of_any_name_has_a_job_whose_name_is_one_of_a_folder(length):
    one, other = (Job.named(Settings(), f"/data/{'x' * (length - 1)}{last}") for last in "ab")
    assert one.prefix != other.prefix
    assert all(len(part) <= 255 for part in one.prefix.split("/"))
    if length <= 246:  # as ever: another would not find its checkpoints
        assert one.job.startswith(f"{'x' * (length - 1)}a-")


def test_a_job_or_project_of_too_long_a_name_is_refused_before_anything_is_written():
    for settings_ in (Settings(job="j" * 256), Settings(project="p" * 256)):
        with pytest.raises(InvalidSettingError, match="has 256 characters, expected 255 at most"):
            _ = Job.named(settings_, "/x").prefix


def test_nodes_of_one_job_write_apart():
    prefixes = {Job.named(Settings(job="j", node_rank=rank), "/x").prefix for rank in range(16)}
    assert len(prefixes) == 16


def test_the_text_of_a_worker_s_configuration_shows_no_storage_option():
    """Invariant 10: it ends up in logs and tracebacks."""
    config = WorkerConfig(
        root="/x",
        store_url="s3://bucket",
        storage_options={"secret": "hunter2hunter2"},
        prefix="p",
        drain_s=1.0,
    )
    assert "hunter2" not in repr(config)
    assert "hunter2" not in str(config)


def test_the_grace_is_a_number_of_seconds():
    assert Settings.from_environ({}).grace is None
    assert Settings.from_environ({"BT_GRACE_S": ""}).grace is None
    assert Settings.from_environ({"BT_GRACE_S": "1.5"}).grace == timedelta(seconds=1.5)
    for text in ("0", "-3", "soon", "nan", "1e300", "inf"):
        with pytest.raises(InvalidSettingError, match="BT_GRACE_S is"):
            Settings.from_environ({"BT_GRACE_S": text})
