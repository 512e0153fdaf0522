"""`checkpoints deploy` and `undeploy`: a Truss that serves, and a protection that says why."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from bt_lightning.errors import InvalidSettingError
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.manage.training_state_files import is_training_state
from bt_lightning.path_layout import job_prefix
from bt_lightning.protection_record import ModelDeployment, Protection
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.transfer.publish import publish
from bt_lightning.weights.weights_list import read_weights

yaml = pytest.importorskip("yaml")

TRAINING = {"optimizer.pt": b"o", "trainer_state.json": b"{}", "rng_state_0.pth": b"r"}
TOKENIZER = {"tokenizer.json": b"{}", "tokenizer_config.json": b"{}"}


def adapter(rank=16, base="Qwen/Qwen3-8B", **more):
    config = {"peft_type": "LORA", "base_model_name_or_path": base, "r": rank, **more}
    return {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": b"a" * 100,
        **TOKENIZER,
        **TRAINING,
    }


def model(kind="llama", **more):
    return {
        "config.json": json.dumps({"model_type": kind}).encode(),
        "model.safetensors": b"m" * 100,
        "optimizer.safetensors": b"o",
        "trainer.json": b"{}",
        **TOKENIZER,
        **more,
    }


@pytest.fixture
def store(tmp_path, make):
    """A store with adapters of two jobs, and models of one."""
    store = LocalStore(tmp_path / "store")

    def add(job, name, step, files):
        checkpoint = make(tmp_path / "made" / job, name, step, files=files)
        publish(store, job_prefix("demo", job, 0), checkpoint)

    add("j", "checkpoint-1", 1, adapter(16))
    add("j", "checkpoint-2", 2, adapter(rank_pattern={"q_proj": 40}))
    add("j", "nested/checkpoint-3", 3, {f"adapter/{k}": v for k, v in adapter().items()})
    add("k", "checkpoint-1", 1, adapter(8, "other/model"))
    add("k", "dora", 2, adapter(use_dora=True))
    add("m", "full", 1, model(**{"chat_template.jinja": b"x"}))
    add("m", "speech", 2, model("whisper"))
    add("m", "frozen", 4, model(**{"base.json": b"{}"}))
    add("m", "plain", 3, {"model.safetensors": b"m", "trainer.json": b"{}"})
    return store


@pytest.fixture
def deploy(cli, store, tmp_path):
    """Run deploy for a job of the store; returns the config and what was said."""

    def deploy(*words, job="j", code=0):
        output = tmp_path / "truss"
        place = ("--store", store.name, "--project", "demo", "--job-id", job)
        done = cli("checkpoints", "deploy", *words, *place, "--output", str(output), code=code)
        path = output / "config.yaml"
        return (yaml.safe_load(path.read_text()) if path.exists() else None), done

    return deploy


def protections(store):
    found = {}
    for path in Path(store.name.removeprefix("file://")).rglob("bt_protected.json"):
        found[path.parent.name] = Protection.from_bytes(path.read_bytes())
    return found


def serve_words(config):
    return shlex.split(config["docker_server"]["start_command"])


def test_adapters_of_one_base_model_are_served_together(deploy, store):
    config, done = deploy(
        "checkpoint-1", "checkpoint-2", "nested/checkpoint-3", "--accelerator", "H100:2"
    )
    words = serve_words(config)
    assert words[:3] == ["vllm", "serve", "/models/base"]
    assert words[words.index("--max-lora-rank") + 1] == "64"  # the next that vLLM has room for
    assert words[words.index("--tensor-parallel-size") + 1] == "2"
    assert words[words.index("--lora-modules") + 1 :] == [
        "checkpoint-1=/models/checkpoint-1",
        "checkpoint-2=/models/checkpoint-2",
        "nested-checkpoint-3=/models/nested-checkpoint-3/adapter",
    ]
    base, first, *_, nested = config["weights"]
    assert base == {"source": "hf://Qwen/Qwen3-8B", "mount_location": "/models/base"}
    assert first["source"] == "bt://demo@j/checkpoint-1"
    assert set(first["allow_patterns"]) == {
        "adapter_config.json",
        "adapter_model.safetensors",
        *TOKENIZER,
    }
    assert all(path.startswith("adapter/") for path in nested["allow_patterns"])
    assert config["resources"]["accelerator"] == "H100:2"
    assert config["model_name"] == "Qwen3-8B"
    found = protections(store)
    assert set(found) == {"checkpoint-1", "checkpoint-2", "checkpoint-3"}
    assert {one.model for p in found.values() for one in p.deployments} == {"Qwen3-8B"}
    assert "truss push" in done.stdout


def test_a_dry_run_writes_the_config_and_protects_nothing(deploy, store):
    config, done = deploy("checkpoint-1", "--dry-run", "-ojson")
    assert config["model_name"] == "Qwen3-8B"
    assert protections(store) == {}
    said = json.loads(done.stdout)
    assert (said["dry_run"], said["protected"]) == (True, False)
    deploy("checkpoint-1")  # the same text may be there already
    assert set(protections(store)) == {"checkpoint-1"}
    _, done = deploy("checkpoint-2", code=11)
    assert "--output" in done.stderr
    assert set(protections(store)) == {"checkpoint-1"}


def test_a_deployed_checkpoint_is_deleted_by_nothing_until_it_is_undeployed(
    deploy, cli, store, tmp_path
):
    at = ("--store", store.name, "--project", "demo", "--job-id", "j")
    cli("checkpoints", "protect", "checkpoint-1", *at, "--why", "paper", "--by", "ada")
    deploy("checkpoint-1", "--model-name", "one", "--by", "bob")
    cli(
        "checkpoints",
        "deploy",
        "checkpoint-1",
        *at,
        "--model-name",
        "two",
        "--output",
        tmp_path / "t",
    )
    done = cli("checkpoints", "delete", "checkpoint-1", *at, "--yes", code=30)
    assert "paper, deployed as one by bob, deployed as two" in done.stdout
    shown = cli("checkpoints", "show", "checkpoint-1", *at).stdout
    assert "paper" in shown
    assert "deployed as one by bob, deployed as two" in shown
    told = json.loads(cli("checkpoints", "show", "checkpoint-1", *at, "-ojson").stdout)
    assert [one["model"] for one in told["protection"]["deployments"]] == ["one", "two"]
    done = cli("checkpoints", "unprotect", "checkpoint-1", *at, code=30)
    assert "still protected: deployed as one" in done.stdout
    done = cli("checkpoints", "undeploy", "checkpoint-1", *at, "--model-name", "three", code=10)
    assert "only as one, two" in done.stderr
    cli("checkpoints", "undeploy", "checkpoint-1", *at, "--model-name", "one")
    cli("checkpoints", "delete", "checkpoint-1", *at, "--yes", code=30)
    cli("checkpoints", "undeploy", "checkpoint-1", *at)
    assert protections(store) == {}
    cli("checkpoints", "undeploy", "checkpoint-1", *at, code=10)
    cli("checkpoints", "delete", "checkpoint-1", *at, "--yes")


def test_a_persons_protection_outlives_the_deployment(deploy, cli, store):
    at = ("--store", store.name, "--project", "demo", "--job-id", "j")
    deploy("checkpoint-1")
    cli("checkpoints", "protect", "checkpoint-1", *at, "--why", "paper", "--by", "ada")
    done = cli("checkpoints", "undeploy", "checkpoint-1", *at)
    assert "still protected: by ada" in done.stdout
    (left,) = protections(store).values()
    assert (left.why, left.deployments) == ("paper", ())


def test_a_model_of_transformers_is_served_from_its_folder(deploy):
    config, _ = deploy("full", job="m")
    words = serve_words(config)
    assert words[2] == "/models/full"
    assert words[words.index("--chat-template") + 1] == "/models/full/chat_template.jinja"
    assert config["docker_server"]["predict_endpoint"] == "/v1/chat/completions"
    (one,) = config["weights"]
    assert set(one["ignore_patterns"]) == {
        "bt_manifest.json",
        "optimizer.safetensors",
        "trainer.json",
    }
    assert "hf://" not in json.dumps(config)


def test_whisper_is_served_for_transcriptions(deploy):
    config, _ = deploy("speech", job="m")
    assert config["docker_server"]["predict_endpoint"] == "/v1/audio/transcriptions"
    assert config["requirements"] == ["vllm[audio]"]


def test_the_weights_that_are_written_are_what_is_pulled(deploy, store, tmp_path, cli):
    deploy("full", job="m")
    path = tmp_path / "truss" / "config.yaml"
    (source,) = read_weights(path)
    assert source.source == "bt://demo@m/full"
    place = ("--root", tmp_path / "root", "--cache", tmp_path / "cache", "--store", store.name)
    cli("weights", "pull", path, *place)
    pulled = tmp_path / "root" / "models" / "full"
    assert {one.name for one in pulled.iterdir()} == {
        "config.json",
        "model.safetensors",
        "chat_template.jinja",
        *TOKENIZER,
    }
    assert (pulled / "model.safetensors").read_bytes() == b"m" * 100
    assert not list_committed(pulled)[0]  # without its manifest it is no checkpoint


def test_artifacts_of_a_job_are_named_as_truss_names_them(deploy):
    config, done = deploy("checkpoint-1", "--source", "training-checkpoints")
    assert config["training_checkpoints"] == {
        "download_folder": "/tmp/training_checkpoints",
        "artifact_references": [{"training_job_id": "j", "paths": ["rank-0/checkpoint-1/"]}],
    }
    module = "checkpoint-1=/tmp/training_checkpoints/j/rank-0/checkpoint-1"
    assert serve_words(config)[-1] == module
    assert "bt://" not in done.stderr


@pytest.mark.parametrize(
    ("words", "job", "code", "said"),
    [
        (["full", "speech"], "m", 2, "only adapters are served together"),
        (["plain"], "m", 10, "no config.json"),
        (["frozen"], "m", 10, "save_frozen=True"),
        (["dora"], "k", 2, "use_dora"),
        (["checkpoint-1", "bt://demo@k/checkpoint-1"], "j", 2, "several base models"),
        (["checkpoint-1", "checkpoint-1"], "j", 2, "named twice"),
        (["checkpoint-1", "--base-model", "/models/mine"], "j", 2, "hf://"),
        (["checkpoint-1", "--accelerator", "none"], "j", 2, "accelerator"),
        (["checkpoint-1", "--vllm-args", "'"], "j", 2, "--vllm-args"),
        (["checkpoint-1", "--vllm-args", "a%(b)s"], "j", 2, "'%'"),
        (["checkpoint-1", "--source", "store"], "j", 2, "s3:// or gs://"),
        (["missing"], "j", 10, "missing"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_is_written(
    deploy, store, words, job, code, said
):
    config, done = deploy(*words, job=job, code=code)
    assert said in done.stderr + done.output
    assert config is None
    assert protections(store) == {}


def test_adapters_of_equal_names_of_two_jobs_get_names_of_their_own(deploy):
    config, _ = deploy("checkpoint-1", "bt://demo@k/checkpoint-1", "--base-model", "own/base@main")
    assert serve_words(config)[-2:] == [
        "j-checkpoint-1=/models/j-checkpoint-1",
        "k-checkpoint-1=/models/k-checkpoint-1",
    ]
    assert config["weights"][0]["source"] == "hf://own/base@main"


def test_a_damaged_checkpoint_is_not_deployed(deploy, store):
    root = Path(store.name.removeprefix("file://"))
    next(root.rglob("checkpoint-1/adapter_model.safetensors")).write_bytes(b"short")
    config, _ = deploy("checkpoint-1", code=12)
    assert config is None


def test_a_directory_without_a_store_is_deployed_by_the_names_of_its_job(cli, make, tmp_path):
    root = tmp_path / "ck"
    make(root, "checkpoint-1", 1, files=adapter())
    cli(
        *("checkpoints", "deploy", "latest", "--dir", root, "--output", tmp_path / "t"),
        env={"BT_TRAINING_JOB_ID": "gvpql31", "BT_TRAINING_PROJECT_NAME": "demo/x"},
    )
    config = yaml.safe_load((tmp_path / "t" / "config.yaml").read_text())
    assert config["weights"][1]["source"] == "bt://demo-x@gvpql31/checkpoint-1"
    assert (root / "checkpoint-1" / "bt_protected.json").exists()


def test_records_of_deployments_are_read_back_and_odd_ones_protect():
    own = Protection(by="ada", why="paper", at="2030-01-01T00:00:00+00:00")
    both = own.deployed(ModelDeployment("m", "bob", "t"))
    assert Protection.from_bytes(both.to_bytes()) == both
    assert Protection.from_bytes(own.to_bytes()) == own
    assert b"deployments" not in own.to_bytes()
    assert both.undeployed("m") == own
    assert Protection(deployments=both.deployments).undeployed(None) is None
    for odd in (b"", b"[]", b'{"deployments": 1}', b'{"deployments": ["x"]}'):
        assert Protection.from_bytes(odd).is_own


@pytest.mark.parametrize(
    ("path", "training"),
    [
        ("optimizer.pt", True),
        ("global_step3/mp_rank_00_model_states.pt", True),
        ("runs/events.out.tfevents.1", True),
        ("rng_state_3.pth", True),
        ("model.safetensors", False),
        ("tokenizer.json", False),
        ("sub/optimizer.pt", False),
    ],
)
def test_files_that_only_training_reads(path, training):
    assert is_training_state(path) is training


def test_a_rank_that_vllm_has_no_room_for_is_an_error():
    from bt_lightning.manage.vllm_truss_config import (
        ServedCheckpoint,
        ServingOptions,
        vllm_truss_config,
    )

    one = ServedCheckpoint(
        name="a", kind="lora", source="bt://p", job="j", artifact="rank-0/a", served=(), rank=600
    )
    with pytest.raises(InvalidSettingError, match="600"):
        vllm_truss_config([one], ServingOptions(model_name="m", base_source="hf://a/b"))
