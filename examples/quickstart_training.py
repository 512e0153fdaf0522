"""The training that quickstart.py starts and kills: an ordinary Lightning script.

`python examples/quickstart_training.py FOLDER 240 20` does it alone: 240 steps, with a checkpoint
every 20. Losses and results go to FOLDER.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import warnings
from pathlib import Path
from pydoc_data.topics import topics

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_gpt import GPT
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from bt_lightning import BTLightning


class PythonDocs(Dataset):
    """What `help()` knows about the Python language, cut into windows of `length` characters."""

    def __init__(self, length: int, size: int) -> None:
        text = "\n".join(topics[name] for name in sorted(topics))[:size]
        self.alphabet = sorted(set(text))
        number = {char: i for i, char in enumerate(self.alphabet)}
        self.ids = torch.tensor([number[char] for char in text])
        self.length = length

    def __len__(self):
        return (len(self.ids) - 1) // self.length

    def __getitem__(self, index):
        window = self.ids[index * self.length :][: self.length + 1]
        return window[:-1], window[1:]


class LossLog(L.Callback):
    """Appends the loss of each step to a file, and prints it."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", buffering=1)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):  # noqa: ARG002
        row = {"step": trainer.global_step, "loss": outputs["loss"].item()}
        self.file.write(json.dumps(row) + "\n")
        print(f"step {row['step']} loss {row['loss']:.4f}", flush=True)


def digest(state: object) -> str:
    """SHA-256 of every tensor in nested dictionaries and lists, and of all that is beside them."""
    sha = hashlib.sha256()

    def add(value):
        if isinstance(value, torch.Tensor):
            sha.update(value.detach().cpu().numpy().tobytes())
        elif isinstance(value, dict):
            add(list(value.items()))
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)
        else:
            sha.update(repr(value).encode())

    add(state)
    return sha.hexdigest()


def train(folder: Path, steps: int, save_every: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # no tips
    warnings.filterwarnings("ignore", ".*does not have many workers")  # the text is in memory

    L.seed_everything(7, verbose=False)
    docs = PythonDocs(length=64, size=200_000)
    model = GPT(vocabulary=len(docs.alphabet), length=64)
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        max_steps=steps,
        gradient_clip_val=1.0,
        callbacks=[
            BTLightning(),  # makes checkpoints durable, publishes them, and resumes
            ModelCheckpoint(
                every_n_train_steps=save_every, save_top_k=2, monitor="step", mode="max"
            ),
            LossLog(folder / "losses.jsonl"),
        ],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, StatefulDataLoader(docs, batch_size=24, shuffle=True, drop_last=True))

    result = {
        "weights": digest(model.state_dict()),
        "optimizer": digest(trainer.optimizers[0].state_dict()),
    }
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    train(Path(sys.argv[1]), *map(int, sys.argv[2:]))
