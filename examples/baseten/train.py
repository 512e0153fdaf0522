"""A small GPT that learns to add: what config.py beside it starts, on all GPUs of the machine.

Alone: `python examples/baseten/train.py`. Stop it at any time (Ctrl-C, kill -9), and start it
again: it goes on, and ends with the same lines. On Baseten checkpoints go to `$BT_CHECKPOINT_DIR`,
elsewhere to the folder `bt_checkpoints`.

    step 50: loss 1.7015
    step 100: loss 1.5219
    ...
    step 300: loss 1.3500
"""

from __future__ import annotations

import logging
import warnings

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bt_lightning import BTLightning

SIGNS = "0123456789+="
LENGTH = len("23+98=121")


class AddingGPT(L.LightningModule):
    def __init__(self, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.token = nn.Embedding(len(SIGNS), width)
        self.position = nn.Parameter(0.02 * torch.randn(LENGTH, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.1, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, len(SIGNS))

    def forward(self, ids):
        length = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, self.device)
        x = self.token(ids) + self.position[:length]
        return self.head(self.layers(x, mask, is_causal=True))

    def training_step(self, batch, _):
        (ids,) = batch
        loss = nn.functional.cross_entropy(self(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        if self.trainer.is_global_zero and (self.global_step + 1) % 50 == 0:
            print(f"step {self.global_step + 1}: loss {loss.item():.4f}", flush=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def sums(rows: int) -> TensorDataset:
    """Rows such as `23+98=121`, one number for each sign; the sum has three digits."""
    pairs = torch.randint(100, (rows, 2), generator=torch.Generator().manual_seed(0)).tolist()
    texts = [f"{a:02}+{b:02}={a + b:03}" for a, b in pairs]
    return TensorDataset(torch.tensor([[SIGNS.index(sign) for sign in text] for text in texts]))


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # no tips
    warnings.filterwarnings("ignore", module="lightning")  # nor of workers: the rows are in memory
    L.seed_everything(7, verbose=False)
    trainer = L.Trainer(
        max_steps=300,
        gradient_clip_val=1.0,
        callbacks=[BTLightning(), ModelCheckpoint(every_n_train_steps=30, save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(AddingGPT(), DataLoader(sums(9600), batch_size=64, shuffle=True))


if __name__ == "__main__":
    main()
