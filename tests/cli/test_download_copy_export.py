"""`download`, `copy`, `export`: whole, verified, resumable, and never over something else."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save

from bt_lightning.lightning_plugin.checkpoint_io import BTCheckpointIO
from bt_lightning.localdir.atomic_directory import partials_dir, temporaries
from bt_lightning.localdir.list_and_verify_checkpoints import verify
from bt_lightning.path_layout import MANIFEST, committed_at, job_prefix
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.lease import Lease
from bt_lightning.store.transfer.publish import publish

FILES = {
    "model.safetensors": save({"w": torch.arange(4.0)}),
    "config.json": b"{}",
    "optimizer.safetensors": save({"m": torch.zeros(4)}),
    "trainer.json": b"{}",
    "deep/er/x.safetensors": save({"w": torch.ones(2)}),
}


@pytest.fixture
def store(tmp_path, make):
    store = LocalStore(tmp_path / "store")
    for step in (1, 2):
        made = make(tmp_path / "source", f"checkpoint-{step}", step, files=FILES)
        publish(store, job_prefix("p", "j", 0), made)
    return store


def test_download_brings_a_committed_checkpoint_and_does_it_once(cli, store, tmp_path):
    args = ("checkpoints", "download", "--store", store.name, "--target-directory", tmp_path / "to")
    said = cli(*args).stdout
    assert "5 files" in said
    assert verify(tmp_path / "to" / "checkpoint-2").step == 2
    assert "already" in cli(*args).stdout
    cli(*args, "checkpoint-1", "bt://p@j/checkpoint-2")
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == [
        "checkpoint-1",
        "checkpoint-2",
    ]


def test_download_of_some_files_is_no_checkpoint(cli, store, tmp_path):
    args = ("checkpoints", "download", "--store", store.name, "--target-directory", tmp_path / "to")
    cli(*args, "--include", "**/*.safetensors", "--exclude", "optimizer*")
    found = {p.relative_to(tmp_path / "to").as_posix() for p in (tmp_path / "to").rglob("*.*")}
    assert found == {"checkpoint-2/model.safetensors", "checkpoint-2/deep/er/x.safetensors"}
    assert "config.json" in cli(*args, "--include", "nothing", code=10).stderr
    cli(*args, "--include", "config.json", code=11)


def test_download_never_goes_over_something_else(cli, store, tmp_path):
    target = tmp_path / "to" / "checkpoint-2"
    target.mkdir(parents=True)
    (target / "mine").write_text("precious")
    args = ("checkpoints", "download", "--store", store.name, "--target-directory", tmp_path / "to")
    assert "is there already" in cli(*args, code=11).stderr
    assert (target / "mine").read_text() == "precious"
    (tmp_path / "to" / "checkpoint-1").symlink_to(tmp_path)
    cli(*args, "checkpoint-1", code=11)


@pytest.mark.parametrize("meanwhile", ["file", "folder"])
@pytest.mark.parametrize("command", ["download", "export"])
def test_what_somebody_made_meanwhile_stays(cli, store, tmp_path, monkeypatch, command, meanwhile):
    from bt_lightning.manage import export as manage_export
    from bt_lightning.store.transfer import fetch_to_disk

    target = tmp_path / "there"
    final = target / ("checkpoint-1" if command == "download" else "out")
    real = fetch_to_disk.download_files

    def download(*args):
        if meanwhile == "folder":
            final.mkdir()
        (final / "mine" if meanwhile == "folder" else final).write_text("of somebody")
        return real(*args)

    for module in (fetch_to_disk, manage_export):
        monkeypatch.setattr(module, "download_files", download)
    to = {"download": ("--target-directory", target), "export": ("--to", "hf", "--output", final)}
    done = cli("checkpoints", command, "checkpoint-1", "--store", store.name, *to[command], code=11)
    assert "it was not changed" in done.stderr
    found = [p for p in target.rglob("*") if p.is_file() and ".bt_lightning" not in p.parts]
    assert [path.read_text() for path in found] == ["of somebody"]


def test_what_a_killed_export_left_goes_with_the_next(cli, store, tmp_path):
    left = temporaries(tmp_path / "out") / "of-a-dead-one"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    out = tmp_path / "out" / "made"
    cli("checkpoints", "export", "--store", store.name, "--to", "hf", "--output", out)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["made"]


def test_a_damaged_file_is_never_given_out(cli, store, tmp_path):
    file = tmp_path / "store" / job_prefix("p", "j", 0) / "checkpoint-2" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    target = tmp_path / "to"
    args = ("--store", store.name, "--target-directory", target)
    assert "model.safetensors" in cli("checkpoints", "download", *args, code=12).stderr
    assert not list(target.rglob("*.safetensors"))
    cli("checkpoints", "copy", "latest", "--store", store.name, "--to", tmp_path / "other", code=12)
    assert not list((tmp_path / "other").rglob(MANIFEST))


def test_what_was_cut_off_is_gone_on_with(cli, store, tmp_path, monkeypatch):
    """The second call asks for what the first did not bring, and for no more."""
    from bt_lightning.store.transfer.checkpoint_reader import StoreReader

    asked = []
    read = StoreReader.read_into

    def dying(self, entry, offset, targets, on_progress):
        asked.append(entry.path)
        if len(asked) == 3:
            raise KeyboardInterrupt
        read(self, entry, offset, targets, on_progress)

    monkeypatch.setattr(StoreReader, "connections", 1)
    monkeypatch.setattr(StoreReader, "read_into", dying)
    args = ("checkpoints", "download", "--store", store.name, "--target-directory", tmp_path / "to")
    cli(*args, code=130)
    assert not (tmp_path / "to" / "checkpoint-2").exists()
    assert partials_dir(tmp_path / "to").is_dir()
    before, asked[:] = set(asked[:2]), [""] * 3
    cli(*args)
    assert not before.intersection(asked)
    assert verify(tmp_path / "to" / "checkpoint-2")


@pytest.mark.parametrize("within", [True, False])
def test_copy_makes_the_same_checkpoint_elsewhere(cli, store, tmp_path, within):
    to = store.name if within else f"file://{tmp_path}/other"
    args = ("checkpoint-1", "latest", "--store", store.name, "--to", to, "--to-job-id", "new")
    cli("checkpoints", "copy", *args)
    cli("checkpoints", "copy", *args, "--job-id", "j")
    there = LocalStore(tmp_path / ("store" if within else "other"))
    for name in ("checkpoint-1", "checkpoint-2"):
        folder = tmp_path / there.name.removeprefix("file://") / job_prefix("p", "new", 0) / name
        assert verify(folder).checkpoint_id == name
    rows = cli("checkpoints", "list", "bt://p@new", "--store", there.name).stdout
    assert rows.count("checkpoint-") == 2


def test_copy_of_a_directory_publishes_it(cli, store, tmp_path, make):
    make(tmp_path / "ck", "best", 9, files=FILES)
    args = ("best", "--dir", tmp_path / "ck", "--to", store.name, "--to-project", "p")
    cli("checkpoints", "copy", *args, "--to-job-id", "k")
    cli("checkpoints", "verify", "bt://p@k/best", "--store", store.name)


def test_copy_to_a_job_that_runs_is_refused(cli, store):
    lease = Lease(store, job_prefix("p", "busy", 0), "somebody")
    lease.take()
    try:
        args = ("latest", "--store", store.name, "--to", store.name, "--to-job-id", "busy")
        cli("checkpoints", "copy", *args, code=29)
    finally:
        lease.release()


def test_export_for_serving_has_the_weights_and_no_more(cli, store, tmp_path):
    cli("checkpoints", "export", "--store", store.name, "--to", "hf", "--output", tmp_path / "hf")
    found = {p.relative_to(tmp_path / "hf").as_posix() for p in (tmp_path / "hf").rglob("*.*")}
    assert found == {"model.safetensors", "config.json", "deep/er/x.safetensors"}
    assert load_file(tmp_path / "hf" / "model.safetensors")["w"].tolist() == [0, 1, 2, 3]
    args = ("--store", store.name, "--to", "hf", "--output", tmp_path / "hf")
    cli("checkpoints", "export", *args, code=11)
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "source", "store"}


def test_export_as_ckpt_is_what_torch_loads(cli, tmp_path):
    state = {
        "state_dict": {"w": torch.arange(4.0)},
        "epoch": 3,
        "global_step": 9,
        "loops": {},
        "optimizer_states": [{"state": {0: {"m": torch.ones(4)}}, "param_groups": []}],
    }
    BTCheckpointIO().save_checkpoint(state, tmp_path / "ck" / "c")
    args = ("c", "--dir", tmp_path / "ck", "--to", "ckpt", "--output", tmp_path / "c.ckpt")
    cli("checkpoints", "export", *args)
    loaded = torch.load(tmp_path / "c.ckpt", weights_only=True)
    assert torch.equal(loaded["state_dict"]["w"], state["state_dict"]["w"])
    assert torch.equal(loaded["optimizer_states"][0]["state"][0]["m"], torch.ones(4))
    assert loaded["global_step"] == 9


@pytest.mark.parametrize("part", ["../../up", "a/../../../up", "a//b", "./c", "/etc", "\x1b[31m"])
def test_a_key_that_climbs_out_of_its_folder_is_nobodys_checkpoint(part):
    """A bucket takes any key; a download of this one would land beside its target."""
    assert committed_at(f"{job_prefix('p', 'j', 0)}/{part}/{MANIFEST}") is None
