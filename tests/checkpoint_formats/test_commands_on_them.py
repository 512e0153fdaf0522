"""The command line on what other programs wrote, where no worker has ever been."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from bt_lightning.cli.explore.file_preview import file_preview
from bt_lightning.localdir.list_and_verify_checkpoints import verify
from bt_lightning.manage.directory_checkpoints import DirectoryCheckpoints
from bt_lightning.manifest import Manifest
from tests.cli.conftest import cli

__all__ = ["cli"]


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A copy of one folder of each library; the commands run beside it."""
    folder = tmp_path / "runs"
    shutil.copytree(made, folder)
    monkeypatch.chdir(tmp_path)
    return folder


def listed(cli, folder):
    said = json.loads(cli("checkpoints", "list", folder, "-o", "json").stdout)
    return {one["checkpoint_id"]: one for one in said["checkpoints"]}


def test_each_is_listed_with_its_facts(cli, here):
    found = listed(cli, here)
    ckpt = next(name for name in found if name.startswith("files/epoch=0"))
    assert found.keys() == {
        *("hf/checkpoint-2", "hf/checkpoint-4", "lora/checkpoint-2", "lora/checkpoint-4"),
        *("only/checkpoint-2", "only/checkpoint-4", "adapter", "model", "sharded", "step-7"),
        *("deep", "files/state", ckpt),
    }
    assert {one["sync_status"] for one in found.values()} == {"NOT COMMITTED"}
    assert {one["id"] for one in found.values()} == {None}
    lora = found["lora/checkpoint-4"]
    assert (lora["checkpoint_type"], lora["base_model"], lora["step"]) == ("lora", "tiny/base", 4)
    assert lora["lora_adapter_config"]["r"] == 2
    full = found["hf/checkpoint-4"]
    assert (full["checkpoint_type"], full["format"], full["resumable"]) == (
        *("full", "hf-trainer"),
        True,
    )
    assert full["metrics"]["eval_loss"] > 0
    assert "NOT COMMITTED" in cli("checkpoints", "list", here).stdout


def test_nothing_is_written_there(cli, here):
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    cli("checkpoints", "list", here)
    cli("checkpoints", "verify", "--dir", here)
    cli("checkpoints", "show", "hf/checkpoint-4", "--dir", here)
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before


def test_what_is_not_whole_is_left_out_with_its_reason(cli, here):
    (here / "hf" / "checkpoint-4" / "trainer_state.json").unlink()
    done = cli("checkpoints", "list", here, "-o", "json")
    assert "hf/checkpoint-4" not in listed(cli, here)
    assert "left out: hf/checkpoint-4 is not whole (hf-trainer)" in done.stderr


@pytest.mark.parametrize("name", ["hf/checkpoint-4", "adapter", "sharded", "deep", "step-7"])
def test_a_folder_opens_by_its_path(cli, here, name):
    done = cli("checkpoints", "show", here / name, "--tensors")
    assert "values" in done.stdout or "parameters" in done.stdout
    assert cli("checkpoints", "show", f"./runs/{name}").stdout.count("Files") == 1


def test_a_file_opens_by_its_path(cli, here):
    ckpt = next((here / "files").glob("*.ckpt"))
    for file in (ckpt, here / "files" / "state.pt", here / "model" / "model.safetensors"):
        said = json.loads(cli("checkpoints", "show", file, "-o", "json").stdout)
        assert len(said["tensors"]) >= 2
        assert [one["path"] for one in said["files"]] == [file.name]
    assert said["format"] == "safetensors"
    os.chdir(here / "files")
    assert "lightning-ckpt" in cli("checkpoints", "show", ckpt.name).stdout
    (here / "files" / "cut.ckpt").write_bytes(ckpt.read_bytes()[:-100])
    done = cli("checkpoints", "show", "cut.ckpt", code=10)
    assert "cut.ckpt is no zip file as torch.save writes it" in done.stderr


def test_verify_says_what_it_knows(cli, here):
    done = cli("checkpoints", "verify", here / "hf" / "checkpoint-4")
    assert "hf-trainer: whole by its layout, without digests to compare with" in done.stdout
    cli("checkpoints", "verify", "--deep", "--dir", here)
    weights = here / "hf" / "checkpoint-4" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    done = cli("checkpoints", "verify", here / "hf" / "checkpoint-4", code=12)
    assert "model.safetensors" in done.stdout


def test_a_download_is_committed(cli, here, tmp_path):
    cli(
        "checkpoints",
        "download",
        "hf/checkpoint-4",
        "--dir",
        here,
        "--target-directory",
        tmp_path / "there",
    )
    folder = tmp_path / "there" / "hf" / "checkpoint-4"
    manifest = verify(folder)
    assert (manifest.format, manifest.step) == ("hf-trainer", 4)
    source = here / "hf" / "checkpoint-4"
    for entry in manifest.files:
        assert (folder / entry.path).read_bytes() == (source / entry.path).read_bytes()
    assert isinstance(manifest, Manifest)


def test_diff_compares_their_tensors_and_files(cli, here):
    done = cli(
        *("checkpoints", "diff", "hf/checkpoint-2", "hf/checkpoint-4", "--dir", here),
        *("-o", "json"),
        code=1,
    )
    kinds = {one["name"]: one["kind"] for one in json.loads(done.stdout)["differences"]}
    assert kinds["model.embed_tokens.weight"] == "changed"
    assert kinds["optimizer.pt"] == "changed"
    shutil.copytree(here / "model", here / "same")
    done = cli("checkpoints", "diff", "model", "same", "--dir", here)
    assert "the same, to the byte" in done.stdout


def test_a_deletion_takes_its_files_only(cli, here):
    (here / "files" / "notes.txt").write_text("mine")
    cli("checkpoints", "delete", "files/state", "--dir", here, "--yes")
    assert not (here / "files" / "state.pt").exists()
    assert {path.suffix for path in (here / "files").iterdir()} == {".ckpt", ".txt"}
    cli("checkpoints", "delete", "hf/checkpoint-2", "--dir", here, "--yes")
    assert [path.name for path in (here / "hf").iterdir()] == ["checkpoint-4"]


def test_the_explorer_shows_every_file(here):
    source = DirectoryCheckpoints(here)
    for item in source.items():
        for entry in item.manifest.files:
            assert len(file_preview(source, item, entry))


def test_whisper_is_told_by_its_configuration(cli, here):
    config = here / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "whisper"}))
    assert listed(cli, here)["model"]["checkpoint_type"] == "whisper"


def test_weights_of_an_adapter_alone_are_one(cli, here):
    weights = here / "adapter" / "adapter_model.safetensors"
    shutil.copy(weights, here / "files" / "lora.safetensors")
    assert listed(cli, here)["files/lora"]["checkpoint_type"] == "lora"
