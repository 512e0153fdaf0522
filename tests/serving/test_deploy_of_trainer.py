"""What the Trainer of transformers saves under `run` is deployed, pulled and loaded as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")
yaml = pytest.importorskip("yaml")

pytestmark = [
    pytest.mark.matrix,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(240),
]

SCRIPT = """
import os
import sys

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments


class Lines(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        tokens = torch.arange(4) + index % 4
        return {"input_ids": tokens, "labels": tokens}


torch.manual_seed(0)
torch.set_num_threads(1)
sizes = {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 16}
heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
base = LlamaForCausalLM(LlamaConfig(**sizes, **heads, num_hidden_layers=1))
base.save_pretrained("base")
base.name_or_path = "tiny/base"
config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
config.base_model_name_or_path = "tiny/base"
model = get_peft_model(base, config) if sys.argv[1] == "lora" else base
arguments = TrainingArguments(
    output_dir=os.environ["BT_CHECKPOINT_DIR"],
    max_steps=2,
    per_device_train_batch_size=2,
    save_steps=2,
    report_to=[],
    disable_tqdm=True,
    use_cpu=True,
)
Trainer(model=model, args=arguments, train_dataset=Lines()).train()
model.save_pretrained("expected")
"""
JOIN = {"with our callback": "1", "alone": "0"}


@pytest.fixture
def trained(tmp_path):
    """Train under `bt-lightning run`; returns the store."""

    def trained(kind, joins):
        (tmp_path / "train.py").write_text(SCRIPT)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("BT_")}
        words = ["run", "--store", "./store", "--project", "p", "--job-id", "j", "--dir", "ck"]
        command = [sys.executable, "train.py", kind]
        if not joins:
            command = ["env", "BT_LIGHTNING=0", *command]
        done = subprocess.run(
            [sys.executable, "-m", "bt_lightning", *words, "--", *command],
            cwd=tmp_path,
            env={**kept, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return str(tmp_path / "store")

    return trained


def run(*words):
    from click.testing import CliRunner

    from bt_lightning.cli.app import main

    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("joins", JOIN.values(), ids=JOIN)
def test_an_adapter_of_the_trainer_is_served_as_it_is(trained, tmp_path, joins):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    store = trained("lora", joins == "1")
    at = ("--store", store, "--project", "p", "--job-id", "j")
    output = tmp_path / "truss"
    run("checkpoints", "deploy", "checkpoint-2", *at, "--output", output)
    config = yaml.safe_load((output / "config.yaml").read_text())
    base, adapter = config["weights"]
    assert (base["source"], adapter["source"]) == ("hf://tiny/base", "bt://p@j/checkpoint-2")
    base["source"] = (tmp_path / "base").as_uri()  # there is no Hub here
    (output / "config.yaml").write_text(yaml.safe_dump(config))
    root, cache = tmp_path / "root", tmp_path / "cache"
    run("weights", "pull", output / "config.yaml", *at[:2], "--root", root, "--cache", cache)
    words = config["docker_server"]["start_command"].split()
    place = Path(f"{root}{words[-1].partition('=')[2]}")
    names = {path.name for path in place.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names
    assert not names & {"optimizer.pt", "trainer_state.json", "training_args.bin"}
    served = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(f"{root}{words[2]}"), place
    )
    expected = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "expected"
    )
    tokens = torch.arange(4)[None]
    with torch.inference_mode():
        assert torch.equal(served(tokens).logits, expected(tokens).logits)


def test_a_model_of_the_trainer_is_served_as_it_is(trained, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    store = trained("full", joins=False)
    at = ("--store", store, "--project", "p", "--job-id", "j")
    output, root = tmp_path / "truss", tmp_path / "root"
    run("checkpoints", "deploy", "latest", *at, "--output", output)
    places = ("--root", root, "--cache", tmp_path / "cache")
    run("weights", "pull", output / "config.yaml", *at[:2], *places)
    words = yaml.safe_load((output / "config.yaml").read_text())["docker_server"]["start_command"]
    place = Path(f"{root}{words.split()[2]}")
    assert {path.name for path in place.iterdir()} >= {"config.json", "model.safetensors"}
    assert not {path.name for path in place.iterdir()} & {"optimizer.pt", "trainer_state.json"}
    tokens = torch.arange(4)[None]
    with torch.inference_mode():
        served = AutoModelForCausalLM.from_pretrained(place)(tokens).logits
        expected = AutoModelForCausalLM.from_pretrained(tmp_path / "expected")(tokens).logits
    assert torch.equal(served, expected)
