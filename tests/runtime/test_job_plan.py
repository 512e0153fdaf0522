"""What is asked for becomes what is run: environment, torchrun's words, what follows an end."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt_lightning.errors import CheckpointCorruptError, InvalidSettingError
from bt_lightning.job_record import Attempt, JobRecord
from bt_lightning.runtime import job_spec_and_environment
from bt_lightning.runtime.command_process import Child
from bt_lightning.runtime.job_plan import CommandOptions, MachineFacts, plan_command, plan_project
from bt_lightning.runtime.job_spec_and_environment import Nodes, Reference, environment, shell
from bt_lightning.runtime.leader_port import await_leader
from bt_lightning.runtime.load_earlier_checkpoints import parse_reference
from bt_lightning.runtime.restart_policy import Exit, RestartPolicy, final_code, pause_s
from bt_lightning.runtime.torchrun_command import torchrun_command
from bt_lightning.truss_definitions import Image, Runtime, TrainingJob, TrainingProject

STARTUP = str(Path(job_spec_and_environment.__file__).with_name("startup"))
HERE = MachineFacts(Path("/work-dir"), 2, Path("/cache"))


def plan(environ=None, words=("python", "train.py"), **options):
    return plan_command(words, CommandOptions(**options), environ or {}, HERE)


def variables(spec, inherited=None, retry=0):
    return environment(spec, inherited or {}, retry, Path("/scratch"))


def test_a_command_gets_every_variable_that_baseten_sets():
    spec = plan(project="demo/qwen", job_id="gvpql31", job_name="n", store="s3://b/x")
    assert variables(spec, {"HOME": "/h", "BT_RETRY_COUNT": "9"}, retry=3) == {
        "HOME": "/h",
        "BT_TRAINING_JOB_ID": "gvpql31",
        "BT_TRAINING_JOB_NAME": "n",
        "BT_TRAINING_PROJECT_ID": "demo/qwen",
        "BT_TRAINING_PROJECT_NAME": "demo/qwen",
        "BT_NUM_GPUS": "2",
        "BT_GROUP_SIZE": "1",
        "BT_NODE_RANK": "0",
        "BT_LEADER_ADDR": "127.0.0.1",
        "BT_RETRY_COUNT": "3",
        "BT_SCRATCH_DIR": "/scratch",
        "BT_STORE_URL": "s3://b/x",
        "BT_CHECKPOINT_DIR": "/work-dir/bt_checkpoints/gvpql31",
        "BT_LIGHTNING": "1",
        "PYTHONPATH": STARTUP,
    }


def test_what_lets_the_callback_join_comes_before_other_places():
    assert variables(plan(), {"PYTHONPATH": "/a:/b"})["PYTHONPATH"] == f"{STARTUP}:/a:/b"
    again = variables(plan(), variables(plan(), {"PYTHONPATH": "/a"}))
    assert again["PYTHONPATH"] == f"{STARTUP}:/a"
    assert (Path(STARTUP) / "sitecustomize.py").is_file()


def test_variables_that_a_job_does_not_have_are_not_inherited():
    stale = {"BT_STORE_URL": "", "BT_LOAD_CHECKPOINT_DIR": "", "BT_WORKING_DIR": "/x"}
    seen = variables(plan(), stale)
    assert not set(stale) & set(seen)
    assert variables(plan({"BT_GRACE_S": "5"}), {})["BT_GRACE_S"] == "5"


def test_inside_a_job_of_the_platform_its_project_keeps_its_id():
    platform = {"BT_TRAINING_PROJECT_ID": "aghi527", "BT_TRAINING_PROJECT_NAME": "my runs"}
    assert variables(plan(platform), platform)["BT_TRAINING_PROJECT_ID"] == "aghi527"
    other = variables(plan(platform, project="mine"), platform)
    assert other["BT_TRAINING_PROJECT_ID"] == other["BT_TRAINING_PROJECT_NAME"] == "mine"


def test_a_new_job_has_an_id_as_basetens_and_each_another():
    ids = {plan().job_id for _ in range(20)}
    assert len(ids) == 20
    assert all(re.fullmatch("[a-z0-9]{7}", one) for one in ids)


def test_what_baseten_set_already_is_kept():
    environ = {
        "BT_TRAINING_JOB_ID": "abc1234",
        "BT_TRAINING_PROJECT_NAME": "p",
        "BT_CHECKPOINT_DIR": "/mnt/ckpts",
        "BT_LOAD_CHECKPOINT_DIR": "/tmp/loaded",
        "BT_GROUP_SIZE": "4",
        "BT_NODE_RANK": "3",
        "BT_LEADER_ADDR": "10.0.0.1",
        "BT_NUM_GPUS": "8",
    }
    seen = variables(plan(environ), environ)
    assert {name: seen[name] for name in environ} == environ


@pytest.mark.parametrize(
    ("environ", "options", "said"),
    [
        ({"BT_NODE_RANK": "2", "BT_GROUP_SIZE": "2", "BT_LEADER_ADDR": "a"}, {}, "from 0 to 1"),
        ({"BT_GROUP_SIZE": "2"}, {}, "BT_LEADER_ADDR"),
        ({"BT_GROUP_SIZE": "0"}, {}, "BT_GROUP_SIZE"),
        ({"BT_NUM_GPUS": "two"}, {}, "BT_NUM_GPUS is 'two'"),
        ({}, {"job_id": "../x"}, "job id"),
        ({}, {"load": ("latest",)}, "no store is named"),
        ({}, {"load": ("a/../b",), "store": "/s"}, "cannot be used"),
        ({}, {"load": ("",), "store": "/s"}, "names no checkpoint"),
        ({}, {"store": "runs/exp"}, "neither a URL nor an absolute path"),
        ({"BT_STORE_URL": "runs/exp"}, {}, "neither a URL nor an absolute path"),
        ({}, {"processes": 2}, "--elastic"),
    ],
)
def test_an_option_of_no_use_is_refused_before_anything_runs(environ, options, said):
    with pytest.raises(InvalidSettingError, match=said):
        plan(environ, **options)


def test_what_is_loaded_has_a_folder_of_its_own_job():
    """Another job's leftovers in Baseten's shared default would be resumed from."""
    spec = plan(load=("latest",), store="/s", job_id="me")
    assert str(spec.load_dir) == "/tmp/loaded_checkpoints/me"
    assert str(plan(load=("latest",), store="/s", load_dir="/d").load_dir) == "/d"
    assert plan().load_dir is None


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("latest", Reference()),
        ("gvpql31", Reference(None, "gvpql31", None)),
        ("gvpql31/a/checkpoint-7", Reference(None, "gvpql31", "a/checkpoint-7")),
        ("bt://p", Reference("p", None, None)),
        ("bt://p@latest/c-1", Reference("p", None, "c-1")),
        ("bt://p@j/c-1", Reference("p", "j", "c-1")),
    ],
)
def test_references_as_people_write_them(text, means):
    assert parse_reference(text) == means


def test_one_node_runs_standalone():
    words = torchrun_command(["python3", "-u", "-W", "error", "t.py", "--lr", "1"], Nodes(), 4, "j")
    assert words == (
        *("python3", "-u", "-W", "error", "-m", "torch.distributed.run"),
        *("--nnodes=1", "--nproc-per-node=4", "--max-restarts=0", "--standalone"),
        *("t.py", "--lr", "1"),
    )


def test_several_nodes_meet_at_the_first():
    nodes = Nodes(rank=1, size=2, leader="10.0.0.1", num_gpus=8)
    words = torchrun_command(["/usr/bin/python3.11", "-m", "pkg.train", "-m"], nodes, 8, "j")
    assert "--nnodes=2" in words
    assert "--rdzv-endpoint=10.0.0.1:29400" in words
    assert "--rdzv-conf=is_host=0,last_call_timeout=30" in words
    assert words[-3:] == ("--module", "pkg.train", "-m")
    assert torchrun_command(["./a.out", "x"], nodes, 1, "j")[-3:] == ("--no-python", "./a.out", "x")


def test_nodes_are_numbered_in_the_order_of_their_ranks():
    """torch sorts them by address, and only that of rank 0 is connected to."""
    ranks = range(12)
    nodes = [Nodes(rank=r, size=12, leader="z-9.local:29411", fewest=2) for r in ranks]
    lines = [torchrun_command(["./a.out"], each, 1, "j", 5.4) for each in nodes]
    addresses = [
        next(word.removeprefix("--local-addr=") for word in line if "--local-addr" in word)
        for line in lines
    ]
    assert addresses == sorted(addresses)
    assert addresses[0] == "z-9.local"
    assert all("--rdzv-endpoint=z-9.local:29411" in line for line in lines)
    assert "--rdzv-conf=is_host=1,last_call_timeout=5" in lines[0]
    assert all("--nnodes=2:12" in line for line in lines)


def test_the_number_of_nodes_may_be_a_range():
    environ = {"BT_LEADER_ADDR": "10.0.0.1", "BT_NODE_RANK": "3"}
    spec = plan(environ, elastic=True, nnodes="1:4")
    assert (spec.nodes.fewest, spec.nodes.size, spec.nodes.rank) == (1, 4, 3)
    assert spec.meets
    assert not plan({}, elastic=True, nnodes="1:1").meets


@pytest.mark.parametrize("text", ["4", "4:1", "0:2", "1:x", ":2", "1:2:3", "-1:2"])
def test_a_range_of_nodes_is_two_numbers(text):
    with pytest.raises(InvalidSettingError, match="as 1:4"):
        plan({}, elastic=True, nnodes=text)


def test_a_range_of_nodes_goes_with_torchrun():
    with pytest.raises(InvalidSettingError, match="--elastic"):
        plan({}, nnodes="1:2")


@pytest.mark.parametrize(
    "environ", [{}, {"BT_NODE_RANK": "4", "BT_LEADER_ADDR": "a"}], ids=["no leader", "rank"]
)
def test_what_is_wrong_with_nodes_is_said_of_the_option_that_counts_them(environ):
    with pytest.raises(InvalidSettingError, match="--nnodes") as found:
        plan(environ | {"BT_GROUP_SIZE": "9"}, elastic=True, nnodes="1:4")
    assert "BT_GROUP_SIZE" not in str(found.value)


@pytest.mark.parametrize(
    "options", [{"elastic": True}, {"processes": 2}, {"nnodes": "1:2"}, {"join_wait_s": 5.0}]
)
def test_no_option_of_torchrun_is_ignored_beside_a_config(options):
    runtime = Runtime(start_commands=["python train.py"])
    job = TrainingJob(image=Image(base_image="x"), runtime=runtime)
    project = TrainingProject(name="p", job=job)
    assert plan_project(project, Path("/d"), CommandOptions(), {}, HERE)
    with pytest.raises(InvalidSettingError, match="--join-wait"):
        plan_project(project, Path("/d"), CommandOptions(**options), {}, HERE)


@pytest.mark.parametrize("host", ["a..b", "x" * 70 + ".org", ".a"])
def test_a_name_that_no_node_can_have_ends_no_wait_by_an_error(host):
    """The wait is over with the first pause: the job is told to end there."""

    class EndsInPause(Child):
        def sleep(self, seconds, tick):
            tick()
            self.stopped_by = signal.SIGTERM

    ticks = []
    await_leader((host, 29400), EndsInPause(), lambda: ticks.append(1), restarts=False)
    assert ticks == [1]


@pytest.mark.parametrize(
    ("leader", "meeting"),
    [
        (None, ("127.0.0.1", 29400)),
        ("10.0.0.1", ("10.0.0.1", 29400)),
        ("node-0:29411", ("node-0", 29411)),
        ("fd00::1", ("fd00::1", 29400)),
    ],
)
def test_where_nodes_meet(leader, meeting):
    assert Nodes(leader=leader).meeting == meeting


@pytest.mark.parametrize("words", [["python"], ["python", "-c", "1"], ["python", "-u", "-"]])
def test_elastic_needs_a_program(words):
    with pytest.raises(InvalidSettingError, match="names none"):
        torchrun_command(words, Nodes(), 1, "j")


def test_start_commands_share_a_shell_and_stop_at_the_first_that_fails(tmp_path):
    def run(*lines):
        done = subprocess.run(
            shell(lines), cwd=tmp_path, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout

    (tmp_path / "sub").mkdir()
    assert run("cd sub", "export A='b  c'", 'echo "$A" $(basename $PWD)') == (0, "b  c sub\n")
    assert run("echo 1", "sh -c 'exit 7'", "echo 2") == (7, "1\n")
    assert run("false || true", "echo on # a comment", "cat <<X\nhere\nX") == (0, "on\nhere\n")
    assert run("false; true", "true && false")[0] == 1
    assert run("set -e", "false; echo never", "echo never")[1] == ""
    assert run("exit 0", "echo never") == (0, "")
    assert run("if")[0] != 0
    assert run("kill -TERM $$", "echo never") == (143, "")


@pytest.mark.parametrize(
    ("ended", "stopping", "outcome"),
    [
        (Exit(0), False, "done"),
        (Exit(0, preempted=True), False, "preempted"),
        (Exit(1, preempted=True), False, "failed"),
        (Exit(143), False, "preempted"),
        (Exit(-15), False, "preempted"),
        (Exit(-9), False, "failed"),
        (Exit(1), False, "failed"),
        (Exit(0), True, "stopped"),
        (Exit(-15), True, "stopped"),
    ],
)
def test_what_an_end_means(ended, stopping, outcome):
    assert RestartPolicy().outcome(ended, stopping=stopping) == outcome


def test_only_failures_use_up_the_retries():
    policy = RestartPolicy(retries=2)
    assert [policy.again("failed", n) for n in (1, 2, 3)] == [True, True, False]
    assert policy.again("preempted", 99)
    assert not policy.again("done", 0)
    assert not policy.again("stopped", 0)


def test_a_stopped_job_never_ends_as_if_it_were_complete():
    assert final_code("stopped", Exit(0), 15) == 143
    assert final_code("stopped", Exit(3), 15) == 3
    assert final_code("failed", Exit(-9), None) == 137
    assert final_code("done", Exit(0), None) == 0


@given(st.integers(0, 10**6))
def test_pauses_grow_and_end(count):
    assert 0 <= pause_s(count) <= pause_s(count + 1) <= 60


texts = st.text(max_size=20)
records = st.builds(
    JobRecord,
    project=texts,
    job_id=texts,
    job_name=texts,
    node_rank=st.integers(0, 9),
    group_size=st.integers(1, 9),
    host=texts,
    status=st.sampled_from(["CREATED", "RUNNING", "COMPLETED", "FAILED", "STOPPED"]),
    checkpoint_sync_status=st.sampled_from(["SYNCING", "COMPLETED", None]),
    created_at=texts,
    updated_at=texts,
    ended_at=st.none() | texts,
    attempts=st.lists(
        st.builds(Attempt, number=st.integers(0, 9), started_at=texts, outcome=texts), max_size=3
    ).map(tuple),
    waiting=st.lists(texts, max_size=3).map(tuple),
)


@given(records)
def test_a_record_comes_back(record):
    assert JobRecord.from_bytes(record.to_bytes(), "x") == record


@pytest.mark.parametrize("nodes", ["-1", "1000000000", '"3"', "null", "true", "1.5"])
@given(record=records)
def test_a_record_of_no_number_of_nodes_is_none(nodes, record):
    data = re.sub(rb'"group_size": \d', b'"group_size": ' + nodes.encode(), record.to_bytes())
    with pytest.raises(CheckpointCorruptError, match="nodes"):
        JobRecord.from_bytes(data, "here")


@given(st.binary(max_size=60) | records.map(lambda record: record.to_bytes()[:-9]))
def test_rubbish_is_no_record(data):
    with pytest.raises(CheckpointCorruptError, match="record of the job at here"):
        JobRecord.from_bytes(data, "here")
