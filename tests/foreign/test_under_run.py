"""A stock HF Trainer under `bt-lightning run`: killed, its disk wiped; what is left is whole."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from bt_lightning.localdir.list_and_verify_checkpoints import verify
from tests.cli.conftest import cli
from tests.runtime.conftest import runner

__all__ = ["cli", "runner"]

SCRIPT = Path(__file__).parent / "stock_trainer.py"


@pytest.mark.filterwarnings("ignore")
def test_a_stock_trainer_is_killed_and_loses_its_disk(runner, cli):
    pytest.importorskip("transformers")
    store = runner.path / "store"
    place = ("--store", store.as_uri(), "--project", "p")
    words = ("--job-id", "j", "--", sys.executable, SCRIPT, store)
    _, err = runner(*place, *words, code=137, env={"HF_HUB_OFFLINE": "1"})
    assert "checkpoint-8 is not in the store: it looks like a checkpoint (hf-trainer)" in err
    assert "trainer_state.json is missing, which the Trainer writes last" in err
    record = runner.record()
    assert (record["newest_checkpoint"], record["waiting"]) == ("checkpoint-6", [])
    assert record["checkpoint_sync_status"] == "COMPLETED"
    shutil.rmtree(runner.path / "bt_checkpoints")
    where = (*place, "--job-id", "j")
    said = json.loads(cli("checkpoints", "list", *where, "-o", "json").stdout)
    found = {one["checkpoint_id"]: one for one in said["checkpoints"]}
    assert found.keys() == {"checkpoint-4", "checkpoint-6"}
    newest = found["checkpoint-6"]
    assert (newest["step"], newest["format"], newest["checkpoint_type"]) == (
        6,
        "hf-trainer",
        "full",
    )
    assert newest["metrics"]["loss"] > 0
    shown = cli("checkpoints", "show", "latest", *where).stdout
    assert "model.embed_tokens" in shown
    cli("checkpoints", "verify", "--deep", *where)
    cli("checkpoints", "diff", "checkpoint-4", "latest", *where, code=1)
    there = runner.path / "there"
    cli("checkpoints", "download", "latest", *where, "--target-directory", there)
    assert verify(there / "checkpoint-6").step == 6
    script = 'cd "$BT_LOAD_CHECKPOINT_DIR" && find . -name trainer_state.json'
    load = ("--load", "j/checkpoint-4", "--load-dir", runner.path / "in")
    out, _ = runner(*place, "--job-id", "k", *load, "--", "sh", "-c", script)
    assert out.split() == ["./j/rank-0/checkpoint-4/trainer_state.json"]
