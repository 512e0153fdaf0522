"""Folders of the real libraries, made once for all tests that look at copies of them."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")


HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    """What the libraries warn of in each other is no failure of ours."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session")
def made_checkpoints():
    """The module beside this file."""
    name = "made_checkpoints"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def made(tmp_path_factory, made_checkpoints):
    """The root of one folder for each format; see the names below."""
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    root = tmp_path_factory.mktemp("made")
    made_checkpoints.train(
        root / "hf", made_checkpoints.tiny_model(), eval_strategy="steps", eval_steps=2
    )
    made_checkpoints.train(
        root / "only", made_checkpoints.tiny_model(), save_only_model=True, save_total_limit=2
    )
    adapted = made_checkpoints.adapter_of(made_checkpoints.tiny_model())
    made_checkpoints.train(root / "lora", adapted)
    adapted.save_pretrained(root / "adapter")
    made_checkpoints.tiny_model().save_pretrained(root / "model")
    made_checkpoints.tiny_model().save_pretrained(root / "sharded", max_shard_size="1KB")
    made_checkpoints.save_distributed(root / "step-7")
    made_checkpoints.save_deepspeed(root / "deep")
    (root / "files").mkdir()
    made_checkpoints.fit_lightning(root / "files")
    state = {"model": {"w": torch.ones(64), "b": torch.ones(3)}, "optimizer": {"m": torch.ones(64)}}
    torch.save({**state, "step": 12, "epoch": 2}, root / "files" / "state.pt")
    return root
