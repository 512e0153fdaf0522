"""Exports have all that their form can hold, under whatever names, and say what they lack."""

from __future__ import annotations

import json

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from bt_lightning.lightning_plugin.checkpoint_io import BTCheckpointIO
from bt_lightning.localdir.commit import commit
from bt_lightning.localdir.list_and_verify_checkpoints import read_manifest
from bt_lightning.manifest import ManifestFacts
from bt_lightning.path_layout import BASE, TREE
from tests.cli.test_export_sharded import export, same
from tests.cli.test_sharded import state_of
from tests.sharding.sharded_checkpoints import write_sharded

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")


@pytest.fixture
def root(tmp_path):
    return tmp_path / "run"


def joined(folder, tmp_path):
    """What torch makes of a directory of DCP."""
    dcp_to_torch_save(folder, tmp_path / "joined.pt")
    return torch.load(tmp_path / "joined.pt", weights_only=False)


def of_a_script(seed=0):
    """What scripts hand to Fabric's `save`."""
    state = state_of(seed, numbered=True)
    return {"model": state["state_dict"], "optimizer": state["optimizer_states"][0], "epoch": 3}


def test_dcp_has_what_a_script_saved_under_names_of_its_own(cli, root, tmp_path):
    BTCheckpointIO().save_checkpoint(of_a_script(), root / "full")
    export(cli, root, "dcp", tmp_path / "dcp", name="full")
    found, expected = joined(tmp_path / "dcp", tmp_path), of_a_script()
    same(found["model"], expected["model"])
    states = {str(number): one for number, one in expected["optimizer"]["state"].items()}
    same(found["optimizer"]["state"], states)
    assert found["epoch"] == 3


def test_diff_knows_weights_by_another_name(cli, root):
    write_sharded(root, "checkpoint-4", state_of())
    BTCheckpointIO().save_checkpoint({"model": state_of(seed=1)["state_dict"]}, root / "full")
    args = ("checkpoints", "diff", "checkpoint-4", "full", "--dir", root, "-o", "json")
    found = json.loads(cli(*args, code=1).stdout)["differences"]
    kinds = {one["name"]: one["kind"] for one in found}
    assert kinds["state_dict.net.1.weight"] == "changed"
    assert "state_dict.count" not in kinds


def test_dcp_refuses_two_values_that_it_would_call_alike(cli, root, tmp_path):
    weights = {"a.b": torch.ones(2), "a": {"b": torch.zeros(2)}}
    BTCheckpointIO().save_checkpoint({"state_dict": weights}, root / "full")
    said = export(cli, root, "dcp", tmp_path / "dcp", name="full", code=16).stderr
    assert "state_dict.a.b" in said
    assert not (tmp_path / "dcp").exists()


def test_dcp_says_which_tensors_it_lacks(cli, root, tmp_path):
    state = state_of() | {"critic": {"weight": torch.ones(2), "bias": torch.ones(1)}}
    write_sharded(root, "checkpoint-4", state)
    said = " ".join(export(cli, root, "dcp", tmp_path / "dcp").stderr.split())
    assert "Without 2 tensors beside weights and states of optimizers: in critic" in said
    score = {"callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}}}
    write_sharded(root, "plain", state_of() | score)
    assert "Without" not in export(cli, root, "dcp", tmp_path / "two", name="plain").stderr


def test_dcp_says_that_it_lacks_the_base(cli, root, tmp_path):
    BTCheckpointIO().save_checkpoint(state_of(numbered=True), root / "full")
    made = read_manifest(root / "full")
    files = {entry.path: (root / "full" / entry.path).read_bytes() for entry in made.files}
    files[BASE] = b'{"version": 1, "name": null, "tensors": {}}'
    facts = ManifestFacts(step=4, epoch=1, created_at="2030-01-02T03:04:05Z")
    streams = {path: (lambda data=data: [data]) for path, data in files.items()}
    commit(root / "trained", root, streams, lambda entries: facts.manifest("trained", 1, entries))
    said = export(cli, root, "dcp", tmp_path / "dcp", name="trained").stderr
    assert "Without the frozen tensors of the base" in said


@pytest.mark.parametrize("name", ["complex128", "float8_e4m3fnuz", "float8_e5m2fnuz"])
def test_dcp_has_dtypes_that_safetensors_lacks(cli, root, tmp_path, name):
    one = torch.randn(6, 4).to(getattr(torch, name))
    write_sharded(root, "checkpoint-4", {"state_dict": {"w": one}})
    export(cli, root, "dcp", tmp_path / "dcp")
    found = joined(tmp_path / "dcp", tmp_path)["state_dict"]["w"]
    assert found.dtype == one.dtype
    assert torch.equal(found.view(torch.uint8), one.view(torch.uint8))


def test_hf_says_which_weights_it_lacks(cli, root, tmp_path):
    weights = {
        "net.w": torch.ones(4, 2),
        "net.extra": {"amax": 1.0},
        "net.complex": torch.ones(4, dtype=torch.complex128),
        "head.w": torch.ones(3),
    }
    weights["tied"] = weights["net.w"]
    write_sharded(root, "checkpoint-4", {"state_dict": weights}, facts={"weights_prefix": "net."})
    said = export(cli, root, "hf", tmp_path / "hf").stderr
    assert "1 values of the weights, no plain tensors: net.extra" in said
    assert "the dtype of 1 weights, there as bytes: net.complex" in said
    assert "1 weights beside the model net.*: head.w" in said
    BTCheckpointIO().save_checkpoint({"state_dict": weights}, root / "full")
    assert "net.extra" in export(cli, root, "hf", tmp_path / "two", name="full").stderr
    del weights["net.extra"], weights["net.complex"], weights["head.w"]
    write_sharded(root, "plain", {"state_dict": weights}, facts={"weights_prefix": "net."})
    assert "Without" not in export(cli, root, "hf", tmp_path / "three", name="plain").stderr


def test_a_key_that_is_no_plain_value_is_said(cli, root, tmp_path):
    """A state dictionary whose names hold lone surrogates."""
    BTCheckpointIO().save_checkpoint({"state_dict": {"a\ud800": torch.ones(2)}}, root / "full")
    said = export(cli, root, "dcp", tmp_path / "dcp", name="full").stderr
    assert "a key that is no plain value" in said
    assert (root / "full" / TREE).exists()
