"""The first epoch after a resume has its own shuffle, also where loader workers prefetch it.

Plain Lightning 2.6.6 starts the workers before it tells the sampler the epoch, so they give out
the order of epoch 0 once more (Lightning issue 21938).
"""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = """
import json, signal, sys
from pathlib import Path
import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader
import plugin_runs as runs
from bt_lightning import BTLightning


class Noting(runs.Net):
    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        seen.setdefault(str(self.current_epoch), []).append(batch[:, 0].mul(64).round().tolist())
        return loss


def fit(name, stop_at):
    root = Path(sys.argv[1], name)
    L.seed_everything(7 if stop_at is None and name == "run" else 1)
    bt = BTLightning(dir=root)
    save = ModelCheckpoint(every_n_epochs=1, save_top_k=-1)
    trainer = runs.trainer(root, bt, save, strategy="ddp", devices=2)

    def end():
        # kill every rank once rank 0's last save is on the disk
        if not trainer.is_global_zero:
            signal.pause()
        bt._session.writer.saves.saver.drain()
        runs.kill_group()

    rows = DataLoader(runs.Numbers(length=64), batch_size=4, shuffle=True, num_workers=2)
    trainer.fit(Noting(stop_at, end), rows)
    found = {"rows": seen, **runs.outcome(trainer)}
    Path(sys.argv[1], f"{name}-{trainer.global_rank}.json").write_text(json.dumps(found))


for name, stop_at in json.loads(sys.argv[2]):
    seen = {}
    fit(name, stop_at)
"""


@pytest.mark.timeout(300)  # two starts of two ranks that each import torch and Lightning
def test_two_ranks_with_workers_shuffle_as_in_the_uninterrupted_run(
    scripts: Any, tmp_path: Path
) -> None:
    scripts.run(
        SCRIPT, tmp_path, json.dumps([("reference", None), ("run", 9)]), code=-signal.SIGKILL
    )
    scripts.run(SCRIPT, tmp_path, json.dumps([("run", None)]), code=0)
    for rank in (0, 1):
        wanted = json.loads((tmp_path / f"reference-{rank}.json").read_text())
        found = json.loads((tmp_path / f"run-{rank}.json").read_text())
        rows = wanted["rows"]
        assert list(rows) == ["0", "1", "2"]
        assert rows["0"] != rows["1"] != rows["2"]
        assert found["rows"] == {epoch: rows[epoch] for epoch in ("1", "2")}
        assert {**found, "rows": rows} == wanted
