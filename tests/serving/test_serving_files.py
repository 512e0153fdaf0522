"""A checkpoint of a `transformers` or `peft` model loads with the libraries that serve it."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")

import lightning as L
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from bt_lightning import BTCheckpointIO, BTLightning, CheckpointMismatchError
from bt_lightning.session.adapter_weights import AdapterWeights
from bt_lightning.session.fit_selection import process_fits
from bt_lightning.session.serving_files import ServingFiles, serving_files

pytestmark = pytest.mark.filterwarnings("ignore")  # of both libraries, by the dozen


def llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)  # as `from_pretrained`, the same at each call
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


class Tuned(L.LightningModule):
    def __init__(self, lm) -> None:
        super().__init__()
        self.lm = lm
        self.probe = torch.nn.Linear(2, 2)  # a weight that no server knows
        words = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)

    def training_step(self, batch, _):
        return self.lm(input_ids=batch, labels=batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], 1e-3)


def fit(module, root, epochs=1, **options):
    """As a new process does, which starts the same script."""
    process_fits.clear()
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[BTLightning(dir=root, fit_name="main", **options)],
    )
    batches = torch.randint(0, 64, (8, 16), generator=torch.Generator().manual_seed(1))
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=4))
    return trainer


def test_a_transformers_model_loads_with_from_pretrained_and_resumes(tmp_path):
    module = Tuned(llama())
    fit(module, tmp_path)
    served = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    trained = module.lm.state_dict()
    assert served.state_dict().keys() == trained.keys()
    assert all(torch.equal(served.state_dict()[name], trained[name]) for name in trained)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "checkpoint-2")
    assert tokenizer.get_vocab() == {"a": 0, "b": 1}
    again = Tuned(llama())
    assert fit(again, tmp_path, epochs=2).global_step == 4
    assert torch.equal(again.probe.weight, module.probe.weight), "a weight beside the model is lost"


def test_a_compiled_model_has_the_names_that_from_pretrained_wants(tmp_path):
    module = Tuned(torch.compile(llama(), backend="eager"))
    fit(module, tmp_path)
    served = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    trained = module.lm._orig_mod.state_dict()
    assert served.state_dict().keys() == trained.keys()
    assert all(torch.equal(served.state_dict()[name], trained[name]) for name in trained)


def test_a_peft_model_loads_as_an_adapter_and_resumes(tmp_path):
    config = LoraConfig(r=4, target_modules=["q_proj"])
    module = Tuned(get_peft_model(llama(), config))
    fit(module, tmp_path)
    weights = BTCheckpointIO().load_checkpoint(tmp_path / "checkpoint-2")["state_dict"]
    assert not any(name.endswith("base_layer.weight") for name in weights), "the base is stored"
    assert "lm.base_model.model.model.embed_tokens.weight" not in weights
    served = PeftModel.from_pretrained(llama(), tmp_path / "checkpoint-2").state_dict()
    adapters = {k: v for k, v in module.lm.state_dict().items() if "lora" in k}
    assert adapters
    assert all(torch.equal(served[name], adapters[name]) for name in adapters)
    assert fit(Tuned(get_peft_model(llama(), config)), tmp_path, epochs=2).global_step == 4


def test_another_base_of_a_peft_model_is_an_error(tmp_path):
    config = LoraConfig(r=4, target_modules=["q_proj"])
    fit(Tuned(get_peft_model(llama(), config)), tmp_path)
    with pytest.raises(CheckpointMismatchError, match=r"other values \(\d+\): lm\.base_model\."):
        fit(Tuned(get_peft_model(llama(seed=1), config)), tmp_path, epochs=2)


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_of_any_name_is_what_peft_itself_saves(tmp_path, dora):
    """With modules that are trained beside it, and after another one became active."""
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], use_dora=dora)
    module = Tuned(get_peft_model(llama(), config, adapter_name="mine"))
    model, weights = module.lm, AdapterWeights(module.lm, module)

    def check(adapter):
        state = module.state_dict()
        wanted = get_peft_model_state_dict(model, adapter_name=adapter)
        found = {theirs: state[ours] for ours, theirs in weights.names_in(state).items()}
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in found)

    check("mine")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    check("mine")
    model.add_adapter("other", LoraConfig(r=2, target_modules=["v_proj"]))
    model.set_adapter("other")
    check("other")
    lacking = {"lm.base_model.model.lm_head.modules_to_save.mine.weight": torch.ones(1)}
    assert not weights.names_in(lacking)
    assert weights.tensors().keys() == get_peft_model_state_dict(model, adapter_name="other").keys()


def test_an_adapter_is_stored_once(tmp_path):
    """With its base too, and where a save has other weights under the same names."""
    config = LoraConfig(r=4, target_modules=["q_proj"])
    for save_frozen in (None, True):
        module = Tuned(get_peft_model(llama(), config))
        root = tmp_path / str(save_frozen)
        fit(module, root, save_frozen=save_frozen)
        path = root / "checkpoint-2"
        wanted = get_peft_model_state_dict(module.lm)
        adapter = load_file(path / "adapter_model.safetensors")
        assert adapter.keys() == wanted.keys()
        assert all(torch.equal(adapter[name], wanted[name]) for name in wanted)
        assert not any("lora" in name for name in load_file(path / "model.safetensors"))
        loaded = BTCheckpointIO().load_checkpoint(path)["state_dict"]
        lora = {name for name in module.state_dict() if "lora" in name}
        assert lora <= loaded.keys()
        assert all(torch.equal(loaded[name], module.state_dict()[name]) for name in lora)


def test_peft_is_asked_for_the_adapter_once(tmp_path, monkeypatch):
    """It makes a state dictionary of the base each time, and may ask the Hub."""
    asked = []
    original = sys.modules["peft"].get_peft_model_state_dict
    monkeypatch.setattr(
        sys.modules["peft"],
        "get_peft_model_state_dict",
        lambda *args, **more: asked.append(args) or original(*args, **more),
    )
    module = Tuned(get_peft_model(llama(), LoraConfig(r=4, target_modules=["q_proj"])))
    fit(module, tmp_path, epochs=3)
    assert len(asked) == 2  # for the names, and whether the embeddings are among them


def test_what_looks_like_a_whole_model_is_one(tmp_path):
    """`from_pretrained` would fill up what is left out with noise, with a warning at most."""
    module = Tuned(llama())
    module.lm.model.requires_grad_(False)
    module.lm.model.norm.requires_grad_(True)
    fit(module, tmp_path, save_frozen=False)
    path = tmp_path / "checkpoint-2"
    assert not (path / "config.json").exists()
    with pytest.raises((OSError, ValueError)):
        AutoModelForCausalLM.from_pretrained(path)
    again = Tuned(llama())
    again.lm.model.requires_grad_(False)
    again.lm.model.norm.requires_grad_(True)
    assert fit(again, tmp_path, epochs=2, save_frozen=False).global_step == 4


def test_transformers_is_asked_for_nothing_that_nobody_has_imported(monkeypatch):
    """torchmetrics imports the package for everybody; its classes of models take another 0.5 s."""
    monkeypatch.delitem(sys.modules, "transformers.modeling_utils")
    monkeypatch.delitem(vars(sys.modules["transformers"]), "PreTrainedModel", raising=False)
    assert serving_files(torch.nn.Linear(1, 1)) == ServingFiles()
    assert "transformers.modeling_utils" not in sys.modules
