"""A small character GPT, its text, and what is recorded of its training: all of it usual code."""

from __future__ import annotations

import hashlib
import json
import math
from pydoc_data.topics import topics
from typing import TYPE_CHECKING

import lightning as L
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from pathlib import Path


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


class Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x):
        x = x + self._drop(self.attention(self.norm1(x)))
        return x + self._drop(self.mlp(self.norm2(x)))

    def attention(self, x):
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each: batch, head, time, channel
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _drop(self, x):
        return F.dropout(x, self.dropout, self.training)


class CharGPT(L.LightningModule):
    def __init__(  # noqa: PLR0913 - the knobs of a GPT
        self,
        *,
        alphabet: int,
        length: int,
        width: int = 160,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
        learning_rate: float = 2e-3,
        warmup: int = 20,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate, self.warmup = learning_rate, warmup
        self.token = nn.Embedding(alphabet, width)
        self.position = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, alphabet, bias=False)
        self.head.weight = self.token.weight
        self.apply(self._initialize)

    @staticmethod
    def _initialize(layer):
        if isinstance(layer, nn.Linear | nn.Embedding):
            nn.init.normal_(layer.weight, std=0.02)

    def forward(self, ids):
        positions = torch.arange(ids.shape[1], device=ids.device)
        return self.head(self.norm(self.blocks(self.token(ids) + self.position(positions))))

    def training_step(self, batch, _):
        ids, targets = batch
        return F.cross_entropy(self(ids).flatten(0, 1), targets.flatten())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), self.learning_rate, betas=(0.9, 0.95))

        def warmup_then_cosine(step):
            if step < self.warmup:
                return (step + 1) / self.warmup
            done = (step - self.warmup) / (self.trainer.max_steps - self.warmup)
            return 0.1 + 0.45 * (1 + math.cos(math.pi * done))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_then_cosine)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


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
