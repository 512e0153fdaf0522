"""The model's parameters are counted apart from the state that only training has."""

from __future__ import annotations

import pytest

from bt_lightning.manage import training_state_files
from bt_lightning.manage.listed_tensors import ListedTensor, role_of, totals_by_role
from bt_lightning.tensor_files.tensor_headers import Tensor

STATE = "optimizer.safetensors"


@pytest.mark.parametrize(
    ("file", "name", "role"),
    [
        ("model.safetensors", "optimizer_head.weight", "model"),
        ("model.safetensors", "callbacks.weight", "model"),
        ("adapter_model.safetensors", "base.lora_A", "model"),
        (STATE, "optimizer_states.0.state.0.exp_avg", "optimizer"),
        (STATE, "callbacks.ModelCheckpoint{}.best_model_score", "callbacks"),
        (STATE, "bt_lightning.exact.ranks.0.rng.torch", "other state"),
        ("shards.json", "state_dict.net.0.weight", "model"),
        ("shards.json", "optimizer_0.state.net.0.weight.exp_avg", "optimizer"),
        ("ranks/00000.safetensors", "rank.rng.torch", "other state"),
        ("epoch=1.ckpt", "state_dict.net.0.weight", "model"),
        ("epoch=1.ckpt", "optimizer_states.0.state.0.exp_avg", "optimizer"),
        ("epoch=1.ckpt", "callbacks.EMA.shadow", "callbacks"),
        ("optimizer.pt", "state.0.exp_avg", "optimizer"),
        ("rng_state.pth", "cpu", "other state"),
        ("pytorch_model.bin", "fc.weight", "model"),
    ],
)
def test_a_tensor_belongs_to_what_its_file_and_its_place_say(file, name, role):
    assert role_of(file, name) == role


def test_the_kind_of_a_file_is_found_once_for_all_its_tensors(monkeypatch):
    asked = []
    monkeypatch.setattr(training_state_files, "matches", lambda *of: asked.append(of) or False)
    training_state_files.is_training_state.cache_clear()
    tensor = Tensor("a.weight", "F32", (1,), 4)
    listed = [ListedTensor("model.safetensors", tensor, None) for _ in range(1000)]
    assert [(one.role, one.number) for one in totals_by_role(listed)] == [("model", 1000)]
    assert 0 < len(asked) < 100
    training_state_files.is_training_state.cache_clear()
