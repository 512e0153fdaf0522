"""Folders in the layout of a framework, saved through a session and read by that framework."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from bt_lightning.errors import CheckpointCorruptError, UnsupportedStateError
from bt_lightning.localdir.list_and_verify_checkpoints import read_manifest, verify
from bt_lightning.session.folder_writer import Folder, FolderWriter
from bt_lightning.session.options import Options
from bt_lightning.session.rank_session import RankSession
from bt_lightning.session.ranks import Ranks
from bt_lightning.snapshot.folder_files import SafetensorsFile, TorchFile


def folder_of(model, optimizer, step):
    """As the Trainer of `transformers` names its files."""
    return Folder(
        files={
            "model.safetensors": SafetensorsFile(model.state_dict()),
            "optimizer.pt": TorchFile(optimizer.state_dict()),
            "trainer_state.json": f'{{"global_step": {step}}}'.encode(),
        },
        step=step,
        epoch=1,
        metrics={"loss": 0.5},
        origin={"format": "hf-trainer"},
    )


@pytest.fixture
def trained():
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters())
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    return model, optimizer


def holds(folder, model, optimizer):
    verify(folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    state = torch.load(folder / "optimizer.pt", weights_only=True)
    torch.testing.assert_close(weights, dict(model.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(state, optimizer.state_dict(), rtol=0, atol=0)


def test_a_session_commits_the_folder_with_a_manifest_in_it(tmp_path, trained):
    model, optimizer = trained
    root = tmp_path / "root"
    session = RankSession(Options.of(dir=str(root)).merged({}))
    session.open(root, Ranks.of_process_group())
    session.begin(lambda: [optimizer])
    session.save(FolderWriter(), folder_of(model, optimizer, 7), root / "checkpoint-7", root)
    session.finish()
    holds(root / "checkpoint-7", model, optimizer)
    manifest = read_manifest(root / "checkpoint-7")
    assert (manifest.step, manifest.epoch, manifest.metrics) == (7, 1, {"loss": 0.5})
    assert manifest.origin["format"] == "hf-trainer"
    assert manifest.resumable


def test_outside_of_a_fit_this_process_commits_it(tmp_path, trained):
    FolderWriter().save(folder_of(*trained, 3), tmp_path / "run" / "checkpoint-3", tmp_path)
    holds(tmp_path / "run" / "checkpoint-3", *trained)


@pytest.mark.parametrize("path", ["../x", "/x", "a//b", "bt_manifest.json", ""])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, path):
    with pytest.raises(CheckpointCorruptError):
        FolderWriter().save(Folder(files={path: b""}, step=1), tmp_path / "c", tmp_path)
    assert not (tmp_path / "c").exists()


def test_what_safetensors_does_not_have_is_named(tmp_path):
    tensors = {"good": torch.ones(1), "bad": torch.ones(1, dtype=torch.complex128)}
    with pytest.raises(UnsupportedStateError, match="bad"):
        FolderWriter().take(Folder(files={"m.safetensors": SafetensorsFile(tensors)}, step=1))


ODD = {
    "a number as name": ({1: torch.ones(1)}, {}),
    "the name of the metadata": ({"__metadata__": torch.ones(1)}, {}),
    "a surrogate": ({"\ud800": torch.ones(1)}, {}),
    "metadata of numbers": ({"x": torch.ones(1)}, {"step": 1}),
    "sparse": ({"x": torch.eye(2).to_sparse()}, {}),
}


@pytest.mark.parametrize("odd", list(ODD))
@pytest.mark.filterwarnings("ignore:Sparse invariant")
def test_what_readers_of_safetensors_refuse_is_refused(odd):
    content = SafetensorsFile(*ODD[odd])
    with pytest.raises(UnsupportedStateError, match=r"m\.safetensors"):
        FolderWriter().take(Folder(files={"m.safetensors": content}, step=1))


def test_a_file_without_tensors_is_one(tmp_path):
    files = {"m.safetensors": SafetensorsFile({}), "o.pt": TorchFile({"state": {}})}
    FolderWriter().save(Folder(files=files, step=1), tmp_path / "c", tmp_path)
    assert safetensors.torch.load_file(tmp_path / "c" / "m.safetensors") == {}
    assert torch.load(tmp_path / "c" / "o.pt", weights_only=True) == {"state": {}}


def test_metadata_is_what_was_given(tmp_path):
    told = {"format": "pt", "who": 'a "b" \u20ac'}
    content = SafetensorsFile({"x": torch.arange(3)}, told)
    FolderWriter().save(Folder(files={"m.safetensors": content}, step=1), tmp_path / "c", tmp_path)
    with safetensors.safe_open(tmp_path / "c" / "m.safetensors", "pt") as file:
        assert file.metadata() == told
