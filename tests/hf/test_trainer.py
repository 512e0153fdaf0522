"""A Trainer with the callback: what is on the disk and in the store, and what a restart does."""

from __future__ import annotations

import json
import shutil
import zipfile

import pytest

from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, verify

pytestmark = pytest.mark.matrix

FILES = {
    "bt_pending_batch.pth",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "trainer_state.json",
    "training_args.bin",
}


def names(folder):
    return sorted(c.manifest.checkpoint_id for c in list_committed(folder)[0])


@pytest.fixture
def stock(undisturbed):
    """The weights that the Trainer alone ends with."""
    return undisturbed()["digest"]


def test_checkpoints_are_folders_of_transformers_with_a_manifest(run, tmp_path, stock):
    found = run("whole", folder="given", env={"BT_CHECKPOINT_DIR": str(tmp_path / "ck")})
    assert found["output_dir"] == str(tmp_path / "ck")
    assert not (tmp_path / "given").exists()
    assert names(tmp_path / "ck") == [f"checkpoint-{n}" for n in (2, 4, 6, 8)]
    for checkpoint in list_committed(tmp_path / "ck")[0]:
        manifest = verify(checkpoint.path)
        assert {entry.path for entry in manifest.files} == FILES
        assert manifest.origin["format"] == "hf-trainer"
        assert manifest.resumable
        assert manifest.metrics.keys() >= {"loss", "learning_rate", "grad_norm"}
    assert found["digest"] == stock, "training changes because it is saved"
    read = run("read_by_transformers", folder=tmp_path / "ck", steps=8)
    assert read["newest"] == str(tmp_path / "ck" / "checkpoint-8")
    assert read["weights"] == stock


@pytest.mark.parametrize("width", [16, 192], ids=["small", "large enough to be a snapshot"])
def test_a_trainer_without_us_goes_on_with_what_we_saved(run, tmp_path, width):
    stock = run("whole", folder=tmp_path / "stock", ours=False, width=width)["digest"]
    run("whole", folder=tmp_path / "ck", width=width)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        with zipfile.ZipFile(tmp_path / "ck" / "checkpoint-6" / name) as file:
            assert file.testzip() is None
    shutil.rmtree(tmp_path / "ck" / "checkpoint-8")
    read = run("read_by_transformers", folder=tmp_path / "ck", steps=8, width=width)
    assert read["digest"] == stock


@pytest.mark.parametrize("lost", [False, True])
def test_a_restart_goes_on_with_the_newest_also_of_the_store(run, tmp_path, stock, lost):
    root, store = tmp_path / "ck", tmp_path / "store"
    found = run(
        "broken", folder=root, env={"BT_STORE_URL": str(store)}, lose=root if lost else None
    )
    assert (found["began"], found["step"], found["digest"]) == (4, 8, stock)
    (job,) = {one.path.parent for one in list_committed(store)[0]}
    assert names(job) == [f"checkpoint-{n}" for n in (2, 4, 6, 8)]


def test_a_job_that_is_complete_trains_nothing(run, tmp_path):
    """The Trainer alone would train one step more, where `max_steps` cuts an epoch off."""
    first = run("whole", folder=tmp_path / "ck", steps=6)
    assert run("whole", folder=tmp_path / "ck", steps=6) == first


def test_retention_is_that_of_the_arguments_on_the_disk_and_in_the_store(run, tmp_path):
    root, store = tmp_path / "ck", tmp_path / "store"
    more = {"save_total_limit": 2, "env": {"BT_STORE_URL": str(store)}}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "eval_steps": 2}
    best |= {"eval_strategy": "steps", "greater_is_better": True}  # the first one is best
    found = run("whole", folder=root, **more, **best)
    assert found["best"] == str(root / "checkpoint-2")
    assert names(root) == ["checkpoint-2", "checkpoint-8"]
    (job,) = {one.path.parent for one in list_committed(store)[0]}
    assert names(job) == ["checkpoint-2", "checkpoint-8"]


def test_the_best_model_comes_back_from_the_store(run, undisturbed, tmp_path):
    """The Trainer alone forgets a best checkpoint that is not on this disk, and keeps the last."""
    root, store = tmp_path / "ck", tmp_path / "store"
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "eval_steps": 2}
    best |= {"eval_strategy": "steps", "greater_is_better": True, "save_total_limit": 2}
    wanted = undisturbed(**best)
    found = run("broken", folder=root, lose=root, env={"BT_STORE_URL": str(store)}, **best)
    assert found["began"] == 4
    assert found["best"] == str(root / "checkpoint-2")
    assert found["digest"] == wanted["digest"]


def test_two_trainings_of_one_script_do_not_mix(run, tmp_path):
    first, second = run("two_in_a_row", folder=tmp_path / "ck")
    assert first["digest"] != second["digest"]
    assert names(tmp_path / "ck") == [
        "checkpoint-2",
        "checkpoint-4",
        "fit-2/checkpoint-2",
        "fit-2/checkpoint-4",
    ]
    assert run("two_in_a_row", folder=tmp_path / "ck") == [first, second]


def test_a_folder_that_the_script_names_is_taken(run, tmp_path, stock):
    run("whole", folder=tmp_path / "ck")
    (tmp_path / "ck" / "checkpoint-8" / "model.safetensors").unlink()
    path = tmp_path / "ck" / "checkpoint-4"
    assert run("from_path", folder=tmp_path / "ck", path=path)["digest"] == stock
    with (path / "optimizer.pt").open("r+b") as file:
        file.seek(100)
        file.write(b"damage")
    found = run("error_of", folder=tmp_path / "new", asked=path)
    assert found["kind"] == "CheckpointCorruptError"
    assert (
        run("error_of", folder=tmp_path / "new", asked="none")["kind"] == "CheckpointNotFoundError"
    )


def test_true_is_a_demand(run, tmp_path):
    found = run("error_of", folder=tmp_path / "ck", asked=True)
    assert found["kind"] == "CheckpointNotFoundError"
    assert "resume_from_checkpoint=True" in found["text"]


def test_a_damaged_checkpoint_gives_way_to_an_older_one(run, tmp_path, stock):
    run("whole", folder=tmp_path / "ck")
    with (tmp_path / "ck" / "checkpoint-8" / "model.safetensors").open("r+b") as file:
        file.seek(5000)
        file.write(b"damage")
    assert run("whole", folder=tmp_path / "ck")["digest"] == stock


def test_two_ranks_save_the_generators_of_both(run, undisturbed, tmp_path):
    wanted = undisturbed(ranks=2)
    found = run("broken", ranks=2, folder=tmp_path / "ck")
    assert (found["began"], found["digest"]) == (4, wanted["digest"])
    files = {path.name for path in (tmp_path / "ck" / "checkpoint-6").iterdir()}
    of_ranks = {name for name in FILES if name.startswith(("rng", "bt_pending"))}
    assert files - {"bt_manifest.json"} == (FILES - of_ranks) | {
        name.replace(".pth", f"_{rank}.pth") for name in of_ranks for rank in (0, 1)
    }


def test_the_state_names_no_folder_of_ours(run, tmp_path):
    best = {"load_best_model_at_end": True, "eval_steps": 2, "eval_strategy": "steps"}
    run("whole", folder=tmp_path / "ck", **best)
    for checkpoint in (tmp_path / "ck").glob("checkpoint-*"):
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        assert state["best_model_checkpoint"].startswith(str(tmp_path / "ck" / "checkpoint-"))
        assert state["global_step"] == int(checkpoint.name.removeprefix("checkpoint-"))


@pytest.mark.parametrize("only_model", [False, True])
def test_the_first_save_is_laid_out_beside_training(run, tmp_path, only_model):
    """The step and two moments of each of 12 weights, unless the optimizer is not saved."""
    found = run("first_save", folder=tmp_path / "ck", save_only_model=only_model)
    assert found["main"] == 0
    assert found["others"] == (0 if only_model else 3 * 12)


def test_a_run_that_began_without_us_goes_on_with_us(run, tmp_path, stock):
    """Its newest whole checkpoint counts; what was half written does not."""
    root, limit = tmp_path / "ck", {"save_total_limit": 2}
    run("whole", folder=root, steps=8, ours=False)
    shutil.rmtree(root / "checkpoint-8")
    (root / "checkpoint-6" / "trainer_state.json").unlink()
    found = run("whole", folder=root, **limit)
    assert found["digest"] == stock
    assert names(root) == ["checkpoint-6", "checkpoint-8"]
    assert not (root / "checkpoint-2").exists(), "the limit is that of all"
    assert (root / "checkpoint-4").exists(), "this run has resumed from it"


@pytest.mark.parametrize("more", [{}, {"gradient_accumulation_steps": 3}], ids=["", "accumulated"])
@pytest.mark.parametrize("at", [4, 5])
def test_batches_that_are_drawn_are_drawn_again(run, undisturbed, tmp_path, more, at):
    """The Trainer alone masks the batches behind a resume otherwise."""
    more = {**more, "draws": True, "eval_strategy": "steps", "eval_steps": 3, "save_steps": 1}
    wanted = undisturbed(**more)
    found = run("broken", folder=tmp_path / "ck", at=at, **more)
    assert (found["began"], found["digest"]) == (at - 1, wanted["digest"])


def test_what_a_subclass_writes_is_saved_and_what_callbacks_look_for_is_there(run, tmp_path):
    """Weights that a callback changes behind a save are not in it, whatever it writes through."""
    root = tmp_path / "ck"
    found = run("written_by_others", folder=root)
    assert found["seen"] == ["checkpoint-2", "checkpoint-4"]
    assert found["weights"][0] > 0.9, "the snapshot has what came after it"
    assert found["weights"][1] == pytest.approx(found["weights"][0] / 2, abs=0.1)
    files = {entry.path for entry in verify(root / "checkpoint-4").files}
    assert files >= (FILES | {"more/notes.txt", "large.pt"})
    assert (root / "newest.txt").read_text() == "checkpoint-4"
