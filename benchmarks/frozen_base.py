"""What a save of an adapter costs, with and without its base: `python benchmarks/frozen_base.py`.

Low-rank layers train beside frozen ones of 1.6 GB. Each run is a process of its own; its row goes
to `benchmarks/results/frozen_base.jsonl`.
"""

from __future__ import annotations

import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from datetime import datetime, timezone
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from bt_lightning import BTLightning
from bt_lightning.lightning_plugin import weight_change_watch
from bt_lightning.session.frozen_base import FrozenBase

RESULTS = Path(__file__).with_name("results") / "frozen_base.jsonl"
WIDTH, LAYERS, RANK = 2048, 96, 4
STEPS, EVERY = 60, 15


class Adapted(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        widths = [(WIDTH, WIDTH), (WIDTH, RANK), (RANK, WIDTH)]
        self.base, self.down, self.up = (
            torch.nn.ModuleList(torch.nn.Linear(a, b, bias=False) for _ in range(LAYERS))
            for a, b in widths
        )
        self.base.requires_grad_(requires_grad=False)

    def training_step(self, rows, _):
        for down, up in zip(self.down, self.up, strict=True):
            rows = rows + up(down(rows))  # the base is only carried along: its forward is no save's
        return rows.pow(2).mean()

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], 1e-4)


def run(folder: Path, *, save_frozen: bool) -> dict[str, float]:
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    records = {}
    weight_change_watch.log_metrics = lambda _, record: records.update({record.number: record})
    module, hashed = Adapted(), []
    init = FrozenBase.__init__

    def timed(*args):
        began = time.perf_counter()
        init(*args)
        hashed.append(time.perf_counter() - began)

    FrozenBase.__init__ = timed
    trainer = L.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            BTLightning(folder / "ck", (folder / "store").as_uri(), save_frozen=save_frozen),
            ModelCheckpoint(every_n_train_steps=EVERY, save_top_k=-1),
        ],
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.randn(STEPS, WIDTH)))
    found = list(records.values())
    return {
        "checkpoint_mb": round(found[-1].bytes / 1e6, 1),
        "hash_s": round(hashed[0], 3),
        **{
            name: round(statistics.median(getattr(one, name) for one in found), 3)
            for name in ("call_ms", "guard_ms", "local_durable_s", "remote_durable_s")
        },
    }


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(run(Path(sys.argv[1]), save_frozen=sys.argv[2] == "True")))
        return
    RESULTS.parent.mkdir(exist_ok=True)
    for save_frozen in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            said = subprocess.run(
                [sys.executable, __file__, folder, str(save_frozen)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        row = {"at": now, "save_frozen": save_frozen, **json.loads(said.splitlines()[-1])}
        print(row)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
