"""The model's parameters are counted apart from the state that only training has."""

from __future__ import annotations

import pytest

from bt_lightning.manage.listed_tensors import role_of

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
