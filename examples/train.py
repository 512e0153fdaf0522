"""Train the character GPT: what examples/config.py starts, on Baseten or anywhere."""

from __future__ import annotations

import lightning as L
from lightning_gpt import GPT
from quickstart_training import PythonDocs
from torch.utils.data import DataLoader

from bt_lightning import BTLightning

LENGTH = 64


def main() -> None:
    L.seed_everything(7)
    docs = PythonDocs(LENGTH, size=100_000)
    model = GPT(vocabulary=len(docs.alphabet), length=LENGTH)
    save = L.pytorch.callbacks.ModelCheckpoint(every_n_train_steps=50, save_top_k=-1)
    trainer = L.Trainer(max_steps=200, callbacks=[save, BTLightning()], logger=False)
    trainer.fit(model, DataLoader(docs, batch_size=16, shuffle=True))


if __name__ == "__main__":
    main()
