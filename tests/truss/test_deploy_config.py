"""What `checkpoints deploy` writes is a config of truss."""

from __future__ import annotations

import pytest

from bt_lightning.manage.vllm_truss_config import (
    ServedCheckpoint,
    ServingOptions,
    vllm_truss_config,
)

truss_config = pytest.importorskip("truss.base.truss_config", reason="`nox -s truss` has it")

SOURCES = {"store": "s3://bucket/training_projects/p/jobs/j/rank-0/c-1", "artifact": ""}


def served(kind, source, name="c-1", **more):
    return ServedCheckpoint(
        name=name,
        kind=kind,
        source=source,
        job="gvpql31",
        artifact=f"rank-0/{name}",
        served=("config.json", "model.safetensors"),
        others=("optimizer.pt",),
        rank=16,
        **more,
    )


def options(**more):
    given = {"base_source": "hf://Qwen/Qwen3-8B@main", "hf_secret": "hf_access_token", **more}
    return ServingOptions(model_name="My model", bucket_secret="aws_credentials", **given)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("kind", ["lora", "full", "whisper"])
def test_truss_takes_the_config_and_means_the_same_by_it(kind, source, tmp_path):
    checkpoints = [served(kind, source)]
    if kind == "lora":
        checkpoints.append(served(kind, source and f"{source}2", "c-2", folder="adapter"))
    made = vllm_truss_config(checkpoints, options(accelerator="L4", gpus=4))
    theirs = truss_config.TrussConfig.from_dict(made)
    path = tmp_path / "config.yaml"
    theirs.write_to_yaml_file(path)
    again = truss_config.TrussConfig.from_yaml(path)
    assert again.model_name == "My model"
    assert again.docker_server.start_command == made["docker_server"]["start_command"]
    assert (again.resources.accelerator.accelerator.value, again.resources.accelerator.count) == (
        "L4",
        4,
    )
    assert [one.source for one in again.weights.sources] == [
        one["source"] for one in made.get("weights", [])
    ]
    if not source:
        references = again.training_checkpoints.artifact_references
        assert [one.paths for one in references] == [[f"{c.artifact}/"] for c in checkpoints]


def test_truss_refuses_nothing_of_a_config_with_bt_sources_but_these():
    made = vllm_truss_config([served("full", "bt://demo@j/c-1")], options())
    with pytest.raises(ValueError, match="bt://"):
        truss_config.TrussConfig.from_dict(made)
    (weights,) = made["weights"]
    weights["source"] = weights["source"].replace("bt://", "https://")
    truss_config.TrussConfig.from_dict(made)
