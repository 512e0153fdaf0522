"""What the real libraries write is whole as it is, and never with a part of it missing or torn."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch

from bt_lightning.checkpoint_formats.results import Incomplete, Whole
from bt_lightning.checkpoint_formats.single_files import recognize_file
from bt_lightning.checkpoint_formats.table import format_of, recognize
from bt_lightning.localdir.folder_on_disk import stamps_below, view_of_folder

FOLDERS = {
    "hf/checkpoint-4": ("hf-trainer", 4, True, False),
    "only/checkpoint-2": ("hf-trainer", 2, False, False),
    "lora/checkpoint-2": ("hf-trainer", 2, True, True),
    "adapter": ("peft", 0, False, True),
    "model": ("hf-pretrained", 0, False, False),
    "sharded": ("hf-pretrained", 0, False, False),
    "step-7": ("dcp", 7, True, False),
    "deep": ("deepspeed", 10, True, False),
}
ANY_TIME = {"README.md", "zero_to_fp32.py", "scheduler.pt", "generation_config.json", "config.json"}
"""Files without which nothing tells that something is missing."""
CUT = {"README.md", "zero_to_fp32.py"}
"""Files of which nothing tells where they end."""


def look(folder, **given):
    return recognize(view_of_folder(folder, stamps_below(folder), **{"settled": True, **given}))


def copy_of(made, name, tmp_path):
    folder = tmp_path / name
    shutil.copytree(made / name, folder)  # with its times
    return folder


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_a_library_is_whole(made, name):
    found = look(made / name)
    assert isinstance(found, Whole), found
    assert (found.format, found.step, found.resumable, found.adapter) == FOLDERS[name]
    assert set(found.files) == set(stamps_below(made / name))


@pytest.mark.parametrize("name", FOLDERS)
def test_no_folder_is_whole_with_a_file_missing(made, name, tmp_path):
    folder = copy_of(made, name, tmp_path)
    for path in stamps_below(folder):
        if path in ANY_TIME or (path == "training_args.bin" and name.startswith(("hf", "lora"))):
            continue
        kept = (folder / path).rename(tmp_path / "kept")
        found = look(folder)
        assert not isinstance(found, Whole), path
        kept.rename(folder / path)


@pytest.mark.parametrize("name", FOLDERS)
def test_no_folder_is_whole_with_a_file_cut_short(made, name, tmp_path):
    folder = copy_of(made, name, tmp_path)
    for path in stamps_below(folder).keys() - CUT:
        file = folder / path
        data, times = file.read_bytes(), file.stat()
        for size in sorted({0, 1, 4, 7, 8, 9, len(data) // 3, len(data) - 22, len(data) - 2}):
            if not 0 <= size < len(data):
                continue
            file.write_bytes(data[:size])
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
            assert not isinstance(look(folder), Whole), (path, size, len(data))
        file.write_bytes(data)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert isinstance(look(folder), Whole)


def test_each_moment_of_a_save_over_an_older_one_is_incomplete(made, tmp_path):
    """As after a kill and a restart from an earlier checkpoint: both saves have one step."""
    folder = copy_of(made, "hf/checkpoint-4", tmp_path)
    order = ["model.safetensors", "training_args.bin", "optimizer.pt", "scheduler.pt"]
    for path in [*order, "rng_state.pth"]:
        os.utime(folder / path)
        found = look(folder)
        assert isinstance(found, Incomplete)
        assert "broken off" in found.reason
    assert isinstance(look(folder, copied=True), Whole)
    os.utime(folder / "trainer_state.json")
    assert isinstance(look(folder), Whole)


def test_the_trainers_sentinel_is_honoured(made, tmp_path):
    folder = copy_of(made, "hf/checkpoint-4", tmp_path)
    (folder / "checkpoint-is-incomplete.txt").write_text("in progress")
    found = look(folder)
    assert isinstance(found, Incomplete)
    assert found.format == "hf-trainer"
    assert "has not finished" in found.reason


def test_metrics_epoch_and_base_model(made):
    trained = look(made / "hf" / "checkpoint-4")
    assert {"loss", "eval_loss"} <= trained.metrics.keys()
    assert trained.epoch == 1
    assert not trained.rotated
    assert look(made / "only" / "checkpoint-4").rotated
    assert look(made / "lora" / "checkpoint-4").base_model == "tiny/base"
    assert look(made / "adapter").base_model == "tiny/base"


def test_the_rest_of_a_trainers_files_is_awaited_while_it_may_come(made, tmp_path):
    """Weights alone under the Trainer's name are a model only if nothing more came."""
    folder = tmp_path / "checkpoint-3"
    shutil.copytree(made / "model", folder)
    found = look(folder, settled=False)
    assert isinstance(found, Incomplete)
    assert not found.kept_back
    assert look(folder).format == "hf-pretrained"
    assert look(folder).step == 3


def test_ranks_that_have_not_written_yet(made, tmp_path):
    folder = copy_of(made, "hf/checkpoint-4", tmp_path)
    shutil.move(folder / "rng_state.pth", folder / "rng_state_0.pth")
    assert "rng_state_1.pth is missing" in look(folder).reason
    shutil.copy2(folder / "rng_state_0.pth", folder / "rng_state_2.pth")
    assert "rng_state_1.pth is missing" in look(folder).reason
    shutil.copy2(folder / "rng_state_0.pth", folder / "rng_state_1.pth")
    assert isinstance(look(folder), Whole)


def test_a_trainer_with_the_shards_of_fsdp(made, tmp_path):
    folder = copy_of(made, "hf/checkpoint-4", tmp_path)
    (folder / "optimizer.pt").unlink()
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model_fsdp_0", "optimizer_0"):
        shutil.copytree(made / "step-7", folder / name)
    assert look(folder).resumable
    (folder / "optimizer_0" / ".metadata").unlink()
    assert "optimizer_0/.metadata is missing" in look(folder).reason


def test_a_trainer_with_deepspeed(made, made_checkpoints, tmp_path):
    folder = copy_of(made, "hf/checkpoint-4", tmp_path)
    (folder / "optimizer.pt").unlink()
    (folder / "model.safetensors").unlink()
    made_checkpoints.save_deepspeed(folder, step=4)
    assert isinstance(look(folder), Whole)
    (folder / "global_step4" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink()
    assert "zero_pp_rank_0" in look(folder).reason


def test_deepspeed_names_the_newest_save(made, made_checkpoints, tmp_path):
    folder = copy_of(made, "deep", tmp_path)
    made_checkpoints.save_deepspeed(folder / "x", step=20)
    shutil.move(folder / "x" / "global_step20", folder / "global_step20")
    shutil.rmtree(folder / "x")
    found = look(folder)
    assert found.step == 10
    assert not any("global_step20" in path for path in found.files)
    (folder / "latest").write_text("global_step20")
    assert look(folder).step == 20


def test_a_sharded_index_that_is_of_another_save(made, tmp_path):
    folder = copy_of(made, "sharded", tmp_path)
    index = folder / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    names = list(said["weight_map"])
    said["weight_map"]["more"] = said["weight_map"][names[0]]
    index.write_text(json.dumps(said))
    assert "lacks more" in look(folder).reason
    said["weight_map"]["more"] = "../../etc/passwd"
    index.write_text(json.dumps(said))
    assert "no file beside it" in look(folder).reason


def test_folders_of_other_things_are_none(tmp_path):
    """Else their files would be kept back."""
    for name, data in (("config.json", '{"lr": 1}'), ("train.log", "x"), ("latest", "run-1\n")):
        (tmp_path / name).write_text(data)
    (tmp_path / "run-1").mkdir()
    torch.save({"w": torch.ones(2)}, tmp_path / "best.pt")
    assert look(tmp_path) is None


def test_loops_that_name_their_folders_as_the_trainer_does(tmp_path):
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    for name in ("model.pt", "optimizer.pt"):
        torch.save({"w": torch.ones(2)}, folder / name)
    assert look(folder) is None


def test_a_lone_configuration_holds_no_tensors(made, tmp_path):
    shutil.copy2(made / "model" / "config.json", tmp_path)
    found = look(tmp_path)
    assert isinstance(found, Incomplete)
    assert not found.kept_back


def test_logs_beside_a_model_are_not_of_it(made, tmp_path):
    folder = copy_of(made, "model", tmp_path)
    (folder / "runs").mkdir()
    for name in ("runs/events.out", "train.log", "train_results.json"):
        (folder / name).write_text("{}")
    shutil.copytree(made / "hf" / "checkpoint-2", folder / "checkpoint-2")
    assert look(folder).files == ("config.json", "generation_config.json", "model.safetensors")


def test_accelerates_save_state(tmp_path):
    Accelerator = pytest.importorskip("accelerate").Accelerator  # noqa: N806 - a class
    model = torch.nn.Linear(4, 4)
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    accelerator.backward(model(torch.ones(1, 4)).sum())
    optimizer.step()
    accelerator.save_state(str(tmp_path / "step_6"))
    found = look(tmp_path / "step_6")
    assert (found.format, found.step, found.resumable) == ("accelerate", 6, True)
    (tmp_path / "step_6" / "random_states_0.pkl").unlink()
    assert isinstance(look(tmp_path / "step_6"), Incomplete)


def file_look(folder, name):
    return recognize_file(view_of_folder(folder, stamps_below(folder), settled=True), name)


def test_files_that_are_checkpoints(made, tmp_path):
    files = {p.name: file_look(made / "files", p.name) for p in (made / "files").iterdir()}
    ckpt = next(found for name, found in files.items() if name.endswith(".ckpt"))
    assert (ckpt.format, ckpt.step, ckpt.epoch, ckpt.resumable) == ("lightning-ckpt", 2, 0, True)
    assert list(ckpt.metrics) == ["val_loss"]
    state = files["state.pt"]
    assert (state.format, state.step, state.epoch, state.resumable) == ("torch", 12, 2, True)
    shutil.copy2(
        made / "adapter" / "adapter_model.safetensors", tmp_path / "lora_step_9.safetensors"
    )
    adapter = file_look(tmp_path, "lora_step_9.safetensors")
    assert (adapter.format, adapter.step, adapter.adapter) == ("safetensors", 9, True)


def test_no_file_is_whole_when_it_is_cut_short_or_longer(made, tmp_path):
    for file in [*(made / "files").iterdir(), made / "model" / "model.safetensors"]:
        data = file.read_bytes()
        step = max(1, len(data) // 97)
        for size in sorted({*range(0, len(data), step), *range(len(data) - 30, len(data))}):
            (tmp_path / file.name).write_bytes(data[:size])
            found = file_look(tmp_path, file.name)
            assert isinstance(found, Incomplete), (file.name, size, len(data))
        (tmp_path / file.name).write_bytes(data + bytes(65_600))
        assert isinstance(file_look(tmp_path, file.name), Incomplete)


def test_a_save_that_an_error_ended_is_incomplete(tmp_path, monkeypatch):
    """torch then ends the zip file well, though tensors are missing in it."""

    torch.save({"a": torch.ones(10)}, tmp_path / "whole.pt")
    real = torch._C.PyTorchFileWriter.write_record

    class Stopping(torch._C.PyTorchFileWriter):
        def write_record(self, name, data, size):
            if name == "data/1":
                raise KeyboardInterrupt
            return real(self, name, data, size)

    monkeypatch.setattr(torch._C, "PyTorchFileWriter", Stopping)
    with pytest.raises(KeyboardInterrupt):
        torch.save({"a": torch.ones(10), "b": torch.ones(20)}, tmp_path / "torn.pt")
    assert isinstance(file_look(tmp_path, "whole.pt"), Whole)
    found = file_look(tmp_path, "torn.pt")
    assert isinstance(found, Incomplete), found
    assert "broken off" in found.reason


def test_files_of_other_programs_are_none(tmp_path):
    (tmp_path / "train.bin").write_bytes(bytes(range(200)))
    (tmp_path / "old.pt").write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("train.bin", "old.pt", "list.pt"):
        assert file_look(tmp_path, name) is None


def test_files_of_another_nodes_ranks_are_not_kept_back(made, tmp_path):
    """A node with a disk of its own has a part only: it is no checkpoint, and is sent as files."""
    shards = copy_of(made, "step-7", tmp_path)
    (shards / ".metadata").unlink()
    assert look(shards).kept_back  # of the first rank, so it was broken off
    (shards / "__0_0.distcp").rename(shards / "__8_0.distcp")
    assert not look(shards).kept_back
    deep = copy_of(made, "deep", tmp_path)
    (deep / "latest").unlink()
    assert look(deep / "global_step10").kept_back
    (deep / "global_step10" / "mp_rank_00_model_states.pt").unlink()
    assert not look(deep / "global_step10").kept_back
    folder = tmp_path / "checkpoint-4"
    folder.mkdir()
    shutil.copy2(made / "hf" / "checkpoint-4" / "rng_state.pth", folder / "rng_state_8.pth")
    assert not look(folder).kept_back


def test_an_optimizer_alone_in_a_folder_of_the_trainer_is_what_is_left_of_one():
    """A deletion that was killed may leave it: it is no checkpoint of its own."""
    found = format_of("checkpoint-4", ["optimizer.pt"], ())
    assert found is not None
    assert found.name == "hf-trainer"
    assert format_of("mine", ["optimizer.pt"], ()) is None
    assert format_of("checkpoint-4", ["optimizer.pt", "model.pt"], ()) is None
