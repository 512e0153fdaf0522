"""`bt-lightning run config.py`: the file that `truss train push` takes, run on this machine."""

from __future__ import annotations

import os

import pytest

CONFIG = """
from truss_train import definitions
from truss.base import truss_config

runtime = definitions.Runtime(
    start_commands=["cd sub", "chmod +x ./run.sh && ./run.sh"],
    environment_variables={{
        "PLAIN": "a b",
        "TOKEN": definitions.SecretReference(name="hf-token"),
    }},
    checkpointing_config=definitions.CheckpointingConfig(
        enabled={enabled}, checkpoint_path="{path}", volume_size_gib=3
    ),
    cache_config=definitions.CacheConfig(enabled=True),
    {more}
)
project = definitions.TrainingProject(
    name="demo/qwen",
    job=definitions.TrainingJob(
        image=definitions.Image(base_image="python:3.11-slim"),
        compute=definitions.Compute(node_count={nodes}, cpu_count=1),
        runtime=runtime,
        name="a name",
    ),
)
"""
SHOWN = """#!/bin/sh
env | grep -E "^(BT_|PLAIN|TOKEN)" | sort
pwd
"""


@pytest.fixture
def config(tmp_path):
    """Writes a config.py in a folder of its own, as people have it."""
    folder = tmp_path / "repo"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "run.sh").write_text(SHOWN)

    def config(more="", enabled=True, path=tmp_path / "ckpts", nodes=1):
        text = CONFIG.format(more=more, enabled=enabled, path=path, nodes=nodes)
        (folder / "config.py").write_text(text)
        return folder / "config.py"

    return config


def seen(out):
    return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)


def test_a_config_runs_as_on_baseten(runner, config, tmp_path):
    path = config()
    out, _ = runner("--job-id", "j", path, env={"HF_TOKEN": "s3cret"})
    found = seen(out)
    wanted = {
        "BT_CHECKPOINT_DIR": str(tmp_path / "ckpts"),
        "BT_GROUP_SIZE": "1",
        "BT_LIGHTNING": "1",
        "BT_NODE_RANK": "0",
        "BT_NUM_GPUS": "0",
        "BT_RETRY_COUNT": "0",
        "BT_TRAINING_JOB_ID": "j",
        "BT_TRAINING_JOB_NAME": "a name",
        "BT_TRAINING_PROJECT_NAME": "demo/qwen",
        "BT_VOLUME_SIZE_GIB": "3",
        "BT_WORKING_DIR": str(path.parent),
        "PLAIN": "a b",
        "TOKEN": "s3cret",
    }
    assert {name: found.get(name) for name in wanted} == wanted
    assert {"BT_RW_CACHE_DIR", "BT_PROJECT_CACHE_DIR", "BT_TEAM_CACHE_DIR"} <= set(found)
    assert all(os.path.isdir(found[f"BT_{kind}_CACHE_DIR"]) for kind in ("PROJECT", "TEAM"))  # noqa: PTH112
    assert out.splitlines()[-1] == str(path.parent / "sub")


def test_a_secret_that_is_not_there_is_named_before_anything_runs(runner, config):
    out, err = runner(config(), code=2)
    assert "HF_TOKEN" in err
    assert not out


def test_no_secret_is_on_a_command_line_or_in_the_record(runner, config, gate, tmp_path):
    path = config()
    (path.parent / "sub" / "run.sh").write_text(f"#!/bin/sh\n{gate.arrive}; {gate.wait}\n")
    process = runner.start("--job-id", "j", path, env={"HF_TOKEN": "s3cret"})
    gate.reached()
    lines = [
        cmd.read_bytes()
        for pid in os.listdir("/proc")  # noqa: PTH208
        if pid.isdigit() and (cmd := tmp_path.__class__(f"/proc/{pid}/cmdline")).exists()
    ]
    assert not [line for line in lines if b"s3cret" in line]
    gate.open()
    _, err = runner.end(process, 0)
    assert "s3cret" not in err
    assert "s3cret" not in (tmp_path / "ckpts/.bt_lightning/job.json").read_text()


def test_checkpointing_that_is_off_stays_off(runner, config):
    out, err = runner(config(enabled=False), env={"HF_TOKEN": "x"})
    assert not {"BT_CHECKPOINT_DIR", "BT_LIGHTNING"} & set(seen(out))
    assert "enabled is False" in err


def test_what_only_baseten_has_is_refused(runner, config):
    loops = (
        "load_checkpoint_config=definitions.LoadCheckpointConfig(enabled=True, checkpoints=["
        "definitions.LoopsCheckpoint.from_checkpoint(run_id='r', checkpoint_name='c')]),"
    )
    _, err = runner("--store", "./store", config(loops), env={"HF_TOKEN": "x"}, code=2)
    assert "Loops" in err


def test_several_nodes_need_an_address(runner, config):
    _, err = runner(config(nodes=2), env={"HF_TOKEN": "x"}, code=2)
    assert "BT_LEADER_ADDR" in err
    nodes = {"BT_GROUP_SIZE": "2", "BT_NODE_RANK": "1", "BT_LEADER_ADDR": "10.0.0.1"}
    out, _ = runner(config(nodes=2), env={"HF_TOKEN": "x", **nodes})
    assert {name: seen(out)[name] for name in nodes} == nodes


def test_a_script_in_place_of_a_config_is_told_how_to_run_it(runner):
    (runner.path / "train.py").write_text("import os")
    _, err = runner("train.py", code=2)
    assert "no global that is a TrainingProject" in err
    assert "bt-lightning run -- python train.py" in err
