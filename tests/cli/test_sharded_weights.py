"""A sharded checkpoint of a transformers model, served: joined, and never offered as it is."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from bt_lightning.localdir.commit import commit
from bt_lightning.localdir.list_and_verify_checkpoints import LocalCheckpoint, read_manifest
from bt_lightning.manifest import ManifestFacts
from bt_lightning.path_layout import job_prefix
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.transfer.publish import publish
from tests.sharding.sharded_checkpoints import by_rows, write_sharded

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")


def tiny_model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=40,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config)


def shard(store, tmp_path, model, prefix, files, before=()):
    """Publish a sharded checkpoint of a LightningModule that has the model at `prefix`.

    `before` are weights that the module has before those of the model.
    """
    root = tmp_path / "run"
    state = dict(before) | {f"{prefix}{name}": one for name, one in model.state_dict().items()}
    state["loss.weight"] = torch.ones(4)
    write_sharded(root, "bare", {"state_dict": state, "global_step": 4}, by_rows(3), world_size=3)
    bare = read_manifest(root / "bare")
    found = {entry.path: (root / "bare" / entry.path).read_bytes() for entry in bare.files}
    streams = {path: (lambda data=data: [data]) for path, data in {**found, **files}.items()}
    facts = ManifestFacts(
        step=4,
        epoch=0,
        created_at="2030-01-02T03:04:05Z",
        origin=bare.origin,
        weights_prefix=prefix if "config.json" in files else "",
    )
    made = commit(
        root / "checkpoint-4", root, streams, lambda files: facts.manifest("checkpoint-4", 1, files)
    )
    publish(store, job_prefix("demo", "j", 0), LocalCheckpoint(root / "checkpoint-4", made))


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "store")


@pytest.fixture
def whole(store, tmp_path):
    """A store with a sharded checkpoint of a whole model."""
    model = tiny_model()
    model.save_pretrained(tmp_path / "stock")
    names = ("config.json", "generation_config.json")
    files = {name: (tmp_path / "stock" / name).read_bytes() for name in names}
    shard(store, tmp_path, model, "model.", files)
    return model


def same_answers(model, folder):
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.arange(12).reshape(2, 6)
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, loaded(tokens).logits)


def test_from_pretrained_of_an_export(cli, store, whole, tmp_path):
    args = ("--store", store.name, "--to", "hf", "--output", tmp_path / "hf")
    cli("checkpoints", "export", "bt://demo@j/checkpoint-4", *args)
    names = {path.name for path in (tmp_path / "hf").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors"}
    same_answers(whole, tmp_path / "hf")


def test_weights_that_the_module_has_by_another_name_before_are_there(cli, store, tmp_path):
    """`self.embed = model.get_input_embeddings(); self.model = model`."""
    model = tiny_model()
    model.save_pretrained(tmp_path / "stock")
    files = {"config.json": (tmp_path / "stock/config.json").read_bytes()}
    before = {"embed.weight": model.get_input_embeddings().weight.detach()}
    shard(store, tmp_path, model, "model.", files, before)
    args = ("--store", store.name, "--to", "hf", "--output", tmp_path / "hf")
    cli("checkpoints", "export", "bt://demo@j/checkpoint-4", *args)
    stock = load_file(tmp_path / "stock/model.safetensors")
    assert load_file(tmp_path / "hf/model.safetensors").keys() == stock.keys()
    same_answers(model, tmp_path / "hf")


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b"[" * 50_000], ids=range(4))
def test_a_damaged_configuration_of_an_adapter_is_named(cli, store, tmp_path, content):
    shard(store, tmp_path, tiny_model(), "net.", {"adapter_config.json": content})
    args = ("--store", store.name, "--to", "hf", "--output", tmp_path / "hf")
    said = cli("checkpoints", "export", "bt://demo@j/checkpoint-4", *args, code=12).output
    assert "adapter_config.json" in said
    assert "is damaged" in said


def test_weights_pull_joins_the_shards(cli, store, whole, tmp_path):
    listed = {
        "weights": [{"source": "bt://demo@j/checkpoint-4", "mount_location": "/models/trained"}]
    }
    (tmp_path / "config.yaml").write_text(json.dumps(listed))
    args = (tmp_path / "config.yaml", "--root", tmp_path / "mounts", "--cache", tmp_path / "cache")
    said = cli("weights", "pull", *args, "--store", store.name).output
    assert "xxh3_128" in said
    assert "size only" not in said
    same_answers(whole, tmp_path / "mounts/models/trained")
    assert "there already, whole" in cli("weights", "pull", *args, "--store", store.name).output


def test_deploy_refuses_shards_and_takes_what_is_joined(cli, store, whole, tmp_path):
    args = ("--store", store.name, "--project", "demo", "--output", tmp_path / "truss")
    refused = cli("checkpoints", "deploy", "checkpoint-4", *args, code=10).output
    assert "export --to hf" in " ".join(refused.split())
    assert not (tmp_path / "truss").exists()
    hf = tmp_path / "joined"
    source = ("bt://demo@j/checkpoint-4", "--store", store.name)
    cli("checkpoints", "export", *source, "--to", "hf", "--output", hf)
    there = ("--to", store.name, "--to-project", "demo", "--to-job-id", "served")
    cli("checkpoints", "copy", hf, *there)
    cli("checkpoints", "deploy", "model", *args, "--job-id", "served", "--accelerator", "H100")
    assert "bt://demo@served/model" in (tmp_path / "truss/config.yaml").read_text()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_is_joined_as_peft_reads_it(cli, store, tmp_path):
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(tiny_model(), config)
    model.save_pretrained(tmp_path / "stock")
    name = "adapter_config.json"
    shard(store, tmp_path, model, "net.", {name: (tmp_path / "stock" / name).read_bytes()})
    args = ("--store", store.name, "--to", "hf", "--output", tmp_path / "hf")
    cli("checkpoints", "export", "bt://demo@j/checkpoint-4", *args)
    assert {path.name for path in (tmp_path / "hf").iterdir()} == {
        name,
        "adapter_model.safetensors",
    }
    loaded = peft.PeftModel.from_pretrained(tiny_model(), tmp_path / "hf")
    expected = peft.get_peft_model_state_dict(model)
    found = peft.get_peft_model_state_dict(loaded)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
