"""The base of a run on several ranks is rank 0's, which DDP gives to the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from bt_lightning.localdir.list_and_verify_checkpoints import list_committed

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(300)]

SCRIPT = """
import os, sys
import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
import plugin_runs as runs
from bt_lightning import BTLightning, CheckpointMismatchError

root, *bases = sys.argv[1:]
rank = int(os.environ["NODE_RANK"])


class Tuned(runs.Net):
    def __init__(self, base, *args):
        super().__init__(*args)
        with torch.random.fork_rng():
            torch.manual_seed(base)
            frozen = torch.nn.Linear(8, 8).requires_grad_(False)
            wide = torch.nn.Linear(8, 256).requires_grad_(False)
        self.net = torch.nn.Sequential(frozen, wide, torch.nn.Linear(256, 1))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.net[2].parameters(), lr=0.01)


def fit(folder, base, stop_at=None):
    L.seed_everything(1)
    trainer = runs.trainer(
        folder,
        BTLightning(dir=folder, save_frozen=False, fit_name="main"),
        ModelCheckpoint(every_n_train_steps=2, save_top_k=-1),
        devices=1,
        num_nodes=2,
        strategy="ddp",
        max_epochs=2,
    )
    module = Tuned(base, stop_at)
    try:
        trainer.fit(module, torch.utils.data.DataLoader(runs.Numbers(), batch_size=4))
    except runs.StoppedError:
        return None
    return runs.outcome(trainer), module.steps[0]


if bases[0] == "other":
    try:
        fit(root, 9)
    except CheckpointMismatchError as error:
        print(f"refused: {'other values' in str(error)}")
    raise SystemExit(0)
whole, _ = fit(f"{root}-whole", int(bases[rank]))
assert fit(root, int(bases[rank]), 4) is None
again, first = fit(root, int(bases[rank]))
print(first, whole == again)
"""


def test_the_base_of_rank_0_counts(scripts: Any, tmp_path: Path) -> None:
    """Rank 1 draws its own, which DDP overwrites; another one of rank 0 is refused by all."""
    root = tmp_path / "run"
    for done in scripts.ranks(SCRIPT, root, 5, 6, envs=[{}, {}], timeout=200):
        assert (done.code, done.out.splitlines()[-1]) == (0, "4 True"), str(done)
    found = list_committed(root)[0]
    assert all(one.manifest.origin["base"]["tensors"] == 3 for one in found)
    for done in scripts.ranks(SCRIPT, root, "other", envs=[{}, {}], timeout=200):
        assert (done.code, done.out.splitlines()[-1]) == (0, "refused: True"), str(done)
