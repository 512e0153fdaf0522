"""What a run on four ranks saved comes out as files that others load, equal to its last state."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from bt_lightning.localdir.list_and_verify_checkpoints import list_committed

SCRIPT = Path(__file__).with_name("sharded_runs.py")


def command(*args: Any) -> str:
    """The output of a command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bt_lightning", "checkpoints", *map(str, args)],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_exports_are_the_state_that_the_ranks_had(scripts: Any, tmp_path: Path) -> None:
    root = tmp_path / "ck"
    job = {"out": str(tmp_path / "run"), "root": str(root), "kind": "mesh", "dp": 2, "tp": 2}
    (tmp_path / "jobs.json").write_text(json.dumps([job]))
    done = scripts.ranks(SCRIPT, tmp_path / "jobs.json", envs=[{}] * 4, timeout=100)
    assert {process.code for process in done} == {0}, "\n".join(map(str, done))
    ended = torch.load(tmp_path / "run" / "state.pt")
    newest = max(list_committed(root.resolve(), foreign=False)[0], key=lambda o: o.manifest.order)
    where = ("--dir", root)
    name = newest.path.relative_to(root.resolve()).as_posix()
    assert "whole" in command("verify", name, *where)
    for to in ("hf", "dcp", "ckpt"):
        command("export", name, *where, "--to", to, "--output", tmp_path / to)
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    whole = torch.load(tmp_path / "ckpt", weights_only=True)
    dcp_to_torch_save(tmp_path / "dcp", tmp_path / "joined.pt")
    joined = torch.load(tmp_path / "joined.pt", weights_only=False)
    for key, tensor in weights.items():
        assert torch.equal(whole["state_dict"][key], tensor)
        assert torch.equal(joined["state_dict"][key], tensor)
        assert torch.equal(ended[f"state_dict.{key}"], tensor), key
    assert weights.keys() <= whole["state_dict"].keys()
    (optimizer,) = whole["optimizer_states"]
    (group,) = joined["optimizer_0"]["param_groups"]
    for number, parameter in enumerate(group["params"]):
        for key, tensor in optimizer["state"][number].items():
            assert torch.equal(joined["optimizer_0"]["state"][parameter][key], tensor)
            assert torch.equal(ended[f"optimizer_0.{parameter}.{key}"], tensor)
    assert "The tensors are the same" in command(
        "diff", name, tmp_path / "hf" / "model.safetensors", *where
    )
