"""The training that `resume.py` kills and starts again; prints when each phase has ended.

python benchmarks/resume_run.py SYSTEM BYTES FOLDER [URL]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

TENSORS = 60
SAVE_AT = 2


def mark(phase: str) -> None:
    print(f"mark {phase} {time.time()}", flush=True)


class Net(L.LightningModule):
    def __init__(self, size: int) -> None:
        super().__init__()
        count = size // 4 // 3 // TENSORS  # AdamW has two moments of each weight
        self.weights = torch.nn.ParameterList(torch.zeros(count) for _ in range(TENSORS))

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        del index
        return sum(weight[:1000].mean() for weight in self.weights) * batch[0].mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Marks(Callback):
    """Says when the state is restored, and when a step has ended."""

    def __init__(self, durable: Any) -> None:
        self.durable, self.first = durable, None

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.first = trainer.global_step
        if self.first:
            mark("state")

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.first and trainer.global_step == self.first + 1:
            mark("step")
        if not self.first and trainer.global_step == SAVE_AT + 1:
            while not self.durable():
                time.sleep(0.01)
            mark("durable")


def main() -> None:
    """Train until somebody kills this."""
    mark("imports")
    system, size, folder, url = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    place = url or str(folder / "plain")
    callbacks: list[Callback] = []
    path = None
    if system == "ours":
        from bt_lightning import BTLightning

        callbacks.append(BTLightning(dir=folder / "ours", store=url or None))
        place = str(folder / "ours")
        save = ModelCheckpoint(every_n_train_steps=SAVE_AT)

        def durable() -> bool:
            if not url:
                return any((folder / "ours").glob("*/bt_manifest.json"))
            import fsspec

            return bool(fsspec.filesystem("s3").glob(f"{url}/**/bt_manifest.json"))
    else:
        save = ModelCheckpoint(dirpath=place, filename="last-save", every_n_train_steps=SAVE_AT)
        path = f"{place}/last-save.ckpt"

        def durable() -> bool:
            return True  # its save has returned

        import fsspec

        if not fsspec.open(path).fs.exists(path):
            path = None
    trainer = L.Trainer(
        max_steps=50,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[*callbacks, save, Marks(durable)],
    )
    load = trainer.strategy.load_checkpoint

    def timed(*args: Any, **kwargs: Any) -> Any:
        mark("begin")
        found = load(*args, **kwargs)
        mark("bytes")
        return found

    trainer.strategy.load_checkpoint = timed
    rows = TensorDataset(torch.ones(200, 4))
    trainer.fit(Net(size), DataLoader(rows, batch_size=4), ckpt_path=path)


if __name__ == "__main__":
    main()
