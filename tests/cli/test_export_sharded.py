"""Exports: what transformers, DCP and Lightning read, from shards and from whole tensors."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from bt_lightning.lightning_plugin.checkpoint_io import BTCheckpointIO
from bt_lightning.localdir.list_and_verify_checkpoints import LocalCheckpoint, read_manifest
from bt_lightning.path_layout import job_prefix
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.transfer.publish import publish
from tests.cli.test_sharded import LAYOUTS, state_of
from tests.sharding.sharded_checkpoints import by_rows, by_rows_and_columns, write_sharded


@pytest.fixture
def root(tmp_path):
    write_sharded(tmp_path / "run", "checkpoint-4", state_of(), by_rows_and_columns(2, 2))
    return tmp_path / "run"


def export(cli, root, to, output, *more, name="checkpoint-4", code=0):
    args = ("checkpoints", "export", name, "--dir", root, "--to", to, "--output", output)
    return cli(*args, *more, code=code)


@pytest.mark.parametrize("layout_of", LAYOUTS)
def test_weights_are_joined_to_the_bytes_of_a_whole_checkpoint(cli, tmp_path, layout_of):
    root = tmp_path / "run"
    write_sharded(root, "checkpoint-4", state_of(), layout_of)
    BTCheckpointIO().save_checkpoint(state_of(numbered=True), root / "full")
    export(cli, root, "hf", tmp_path / "hf")
    assert {path.name for path in (tmp_path / "hf").iterdir()} == {"model.safetensors"}
    made = (tmp_path / "hf/model.safetensors").read_bytes()
    assert made == (root / "full/model.safetensors").read_bytes()


def test_weights_above_a_size_are_several_files_with_an_index(cli, root, tmp_path):
    export(cli, root, "hf", tmp_path / "hf", "--max-shard-size", "3e-7")
    index = json.loads((tmp_path / "hf/model.safetensors.index.json").read_text())
    found = {}
    for name in sorted(set(index["weight_map"].values())):
        found |= load_file(tmp_path / "hf" / name)
    assert len(set(index["weight_map"].values())) == 2
    weights = state_of()["state_dict"]
    del weights["head.weight"]  # tied
    assert found.keys() == weights.keys() == index["weight_map"].keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def stock_load(folder):
    """What torch's own reader makes of it, for a state as Lightning's strategy would load it."""
    wanted = state_of(seed=1)
    weights = {name: torch.zeros_like(one) for name, one in wanted["state_dict"].items()}
    (optimizer,) = wanted["optimizer_states"]
    state = {"state_dict": weights, "optimizer_0": optimizer}
    dcp.load(state, checkpoint_id=folder)
    return state


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        if isinstance(one, dict):
            same(found[name], one)
        elif isinstance(one, torch.Tensor):
            assert found[name].dtype == one.dtype
            assert torch.equal(found[name], one)
        else:
            assert found[name] == one


@pytest.mark.filterwarnings("ignore:torch.distributed is")
@pytest.mark.parametrize("layout_of", LAYOUTS)
def test_stock_dcp_loads_what_is_exported_from_shards(cli, tmp_path, layout_of):
    write_sharded(tmp_path / "run", "checkpoint-4", state_of(), layout_of)
    export(cli, tmp_path / "run", "dcp", tmp_path / "dcp")
    expected = state_of()
    (optimizer,) = expected["optimizer_states"]
    state = {"state_dict": expected["state_dict"], "optimizer_0": optimizer}
    found = stock_load(tmp_path / "dcp")
    groups = found["optimizer_0"].pop("param_groups"), optimizer.pop("param_groups")
    same(found, state)
    assert groups[0] == groups[1]
    dcp_to_torch_save(tmp_path / "dcp", tmp_path / "joined.pt")
    joined = torch.load(tmp_path / "joined.pt", weights_only=False)
    assert joined["optimizer_0"].pop("param_groups") == groups[1]
    same(joined, state)


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_stock_dcp_loads_what_is_exported_from_whole_tensors(cli, tmp_path):
    state = state_of(numbered=True)
    state["state_dict"]["odd"] = torch.randn(5, dtype=torch.complex128)
    state["state_dict"]["f8"] = torch.randn(5).to(torch.float8_e4m3fn)
    BTCheckpointIO().save_checkpoint(state, tmp_path / "run/full")
    export(cli, tmp_path / "run", "dcp", tmp_path / "dcp", name="full")
    dcp_to_torch_save(tmp_path / "dcp", tmp_path / "joined.pt")
    joined = torch.load(tmp_path / "joined.pt", weights_only=False)
    f8 = joined["state_dict"].pop("f8"), state["state_dict"].pop("f8")
    assert torch.equal(f8[0].view(torch.uint8), f8[1].view(torch.uint8))
    same(joined["state_dict"], state["state_dict"])
    (optimizer,) = state["optimizer_states"]
    assert joined["optimizer_0"]["param_groups"] == optimizer["param_groups"]
    same(joined["optimizer_0"]["state"], {str(n): o for n, o in optimizer["state"].items()})


def test_what_is_in_a_dcp_directory_is_sound_and_always_the_same(cli, root, tmp_path):
    for name in ("one", "other"):
        export(cli, root, "dcp", tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == [".metadata", *(f"__{rank}_0.distcp" for rank in range(4))]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    metadata = dcp.FileSystemReader(tmp_path / "one").read_metadata()
    for place in metadata.storage_data.values():
        with (tmp_path / "one" / place.relative_path).open("rb") as file:
            file.seek(place.offset)
            part = tmp_path / "part"
            part.write_bytes(file.read(place.length))
        with zipfile.ZipFile(part) as archive:
            assert archive.testzip() is None  # each CRC is right


def test_lightning_loads_the_ckpt(cli, root, tmp_path):
    export(cli, root, "ckpt", tmp_path / "whole.ckpt")
    found = torch.load(tmp_path / "whole.ckpt", weights_only=True)
    expected = state_of(numbered=True)
    same(found["state_dict"], expected["state_dict"])
    (optimizer,), (wanted,) = found["optimizer_states"], expected["optimizer_states"]
    assert optimizer["param_groups"] == wanted["param_groups"]
    same(optimizer["state"], wanted["state"])


def test_an_export_from_a_store_keeps_nothing_else(cli, root, tmp_path):
    store = LocalStore(tmp_path / "store")
    final = root / "checkpoint-4"
    publish(store, job_prefix("p", "j", 0), LocalCheckpoint(final, read_manifest(final)))
    export(cli, root, "hf", tmp_path / "one")
    args = ("bt://p@j/checkpoint-4", "--store", store.name, "--to", "hf")
    cli("checkpoints", "export", *args, "--output", tmp_path / "to/two")
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["two"]
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "to/two"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("to", ["hf", "dcp", "ckpt"])
def test_a_target_that_is_there_stays_and_damage_leaves_nothing(cli, root, tmp_path, to):
    (tmp_path / "mine").write_text("precious")
    assert "is there already" in export(cli, root, to, tmp_path / "mine", code=11).stderr
    shard = root / "checkpoint-4/shard-00002-of-00004.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    export(cli, root, to, tmp_path / "to/out", code=12)
    assert list((tmp_path / "to").iterdir()) == []


MEMORY = """
import re, sys
from pathlib import Path
from bt_lightning.cli.app import main
if "ckpt" in sys.argv:
    import bt_lightning.restore.export_ckpt  # torch

def peak():  # of this program, unlike ru_maxrss, which counts what it was forked from
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

before = peak()
try:
    main(sys.argv[1:])
finally:
    assert "torch" not in sys.modules or "ckpt" in sys.argv
    print(f"grew {(peak() - before) // 1024}", file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.parametrize("to", ["hf", "dcp", "ckpt"])
@pytest.mark.parametrize("columns", [False, True])
def test_an_export_needs_little_memory(tmp_path, to, columns):
    """Of 1.5 GB, in one tensor of 1 GB and many others."""
    weights = {f"layer.{n}": torch.randn(1024, 1024) for n in range(128)}
    weights["large"] = torch.randn(16384, 16384)
    layout = by_rows_and_columns(1, 4) if columns else by_rows(4)
    write_sharded(tmp_path / "run", "c", {"state_dict": weights}, layout)
    command = ("checkpoints", "export", "c", "--dir", tmp_path / "run", "--to", to)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *map(str, command), "--output", str(tmp_path / "out")],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    most = 256 + (1024 if to == "ckpt" else 0)  # beyond one tensor
    assert int(done.stderr.rpartition("grew ")[2]) < most, done.stderr
