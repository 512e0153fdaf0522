"""Fits on a directory that somebody put odd things into, or whose file system lacks something."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, verify
from tests.kernels import can
from tests.oddities import (
    MOST_MB,
    as_anybody,
    closed_to_us,
    committed,
    dense,
    endless,
    fifo,
    sparse,
    spoil,
)

HERE = Path(__file__).parents[2]
_FIT = """
import json, logging, os, sys, time, warnings
from pathlib import Path
import torch
import lightning.pytorch as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from bt_lightning import BTLightning
from bt_lightning.session.fit_selection import process_fits
root, said = Path(sys.argv[1]), json.loads(sys.argv[2])
if said.get("refuse"):
    sys.path.insert(0, said["refuse"])
    from tests.kernels import refuse
    refuse(symlinks=True)

def peak():
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) // 1024

def fit(path, steps, **options):
    process_fits.clear()  # as the same script in another process
    os.environ["BT_CHECKPOINT_DIR"] = str(path)
    more = {**said.get("options", {}), **options}
    callback = BTLightning(drain_timeout=60, fit_name="main", **more)
    saves = ModelCheckpoint(every_n_train_steps=1, **said["saves"])
    trainer = L.Trainer(
        default_root_dir=path, max_steps=steps, limit_val_batches=0, logger=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        callbacks=[callback, saves],
    )
    trainer.fit(BoringModel())
    return trainer.global_step

if said["measure"]:
    fit(root.parent / "first", 3)
before, cpu = peak(), time.process_time()
done = [fit(root, said["steps"], resume="never")]
if said["more"]:
    done.append(fit(root, said["more"]))
print(json.dumps([done, peak() - before, time.process_time() - cpu]))
"""


@pytest.fixture
def fit(scripts):
    """Fit in a process of its own; steps done, MB and seconds of one core taken, what was said."""

    def fit(root, anybody=False, **said):
        said = {"steps": 3, "more": 0, "measure": False, "saves": {"save_top_k": -1}, **said}
        prepare = as_anybody if anybody else None
        done = scripts.run(_FIT, root, json.dumps(said), prepare=prepare)
        return (*json.loads(done.out.splitlines()[-1]), done.err)

    return fit


@pytest.mark.parametrize("put", [fifo, endless, sparse, dense], ids=lambda put: put.__name__)
def test_a_fit_begins_within_its_limits_beside_files_of_ours_that_are_none(fit, put, tmp_path):
    """Locks apart: what stands in the place of a lock is told by the error of the start."""
    root = tmp_path / "root"
    spoil(root, put)
    for name in ("worker.lock", "worker.want", "worker.standby", "commit.lock", "run.lock"):
        _remove(root / ".bt_lightning" / name)
    done, grown, cpu, _ = fit(root, measure=True, saves={"save_top_k": 1})
    assert done == [3]
    assert grown < MOST_MB
    assert cpu < 5
    names = {found.path.name for found in list_committed(root).found}
    assert {"good", "protected", "checkpoint-3"} <= names


def test_what_stands_in_the_place_of_a_lock_is_named(fit, tmp_path):
    (tmp_path / "root" / ".bt_lightning" / "commit.lock").mkdir(parents=True)
    with pytest.raises(AssertionError) as caught:
        fit(tmp_path / "root")
    last = str(caught.value).strip().splitlines()
    assert any("DirectoryUnusableError" in line for line in last)
    assert any("commit.lock is a directory, expected a regular file: move it" in x for x in last)


@pytest.mark.parametrize("store", [False, True])
def test_the_top_of_a_volume_is_a_checkpoint_directory_with_and_without_a_budget(
    fit, store, tmp_path
):
    """`lost+found` of ext4 is for root only."""
    root = tmp_path / "root"
    root.mkdir()
    committed(root, "elsewhere/good", 0)
    if not closed_to_us(root / "lost+found"):
        pytest.skip("root cannot give up its rights here")
    options = {"volume_size_gib": 1}
    if store:
        options["store"] = str(tmp_path / "store")
    done, _, _, errors = fit(root, anybody=True, options=options, more=4)
    assert done == [3, 4]
    assert "Traceback" not in errors
    assert errors.count(f"{root}/lost+found: Permission denied: it is left out") == 1
    assert {found.manifest.step for found in list_committed(root).found} >= {1, 2, 3, 4}


def test_a_last_that_cannot_be_a_link_is_a_checkpoint(fit, tmp_path):
    if not can("no links"):
        pytest.skip("this machine has no seccomp")
    root = tmp_path / "root"
    saves = {"save_last": "link", "save_top_k": 1}
    done, _, _, errors = fit(root, refuse=str(HERE), saves=saves, more=5)
    assert done == [3, 5]
    assert errors.count("has no symbolic links (Operation not permitted)") == 2
    assert not (root / "last").is_symlink()
    assert verify(root / "last").step == 5
    names = {found.path.name for found in list_committed(root).found}
    assert {"last", "checkpoint-5"} <= names


def _remove(path) -> None:
    if path.is_dir() and not path.is_symlink():
        for inner in path.iterdir():
            inner.rmdir()
        path.rmdir()
    else:
        path.unlink()
