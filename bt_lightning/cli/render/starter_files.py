"""The files that `init` writes."""

from __future__ import annotations

import json
from typing import Final

_SCRIPT: Final = '''"""Trains a small network, whose checkpoints are saved and resumed from."""

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from bt_lightning import BTLightning


class Net(L.LightningModule):
    def __init__(self, lr=1e-2):
        super().__init__()
        self.save_hyperparameters()
        layers = (torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
        self.net = torch.nn.Sequential(*layers)

    def training_step(self, batch, index):
        x, y = batch
        loss = torch.nn.functional.mse_loss(self.net(x), y)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)


def main():
    L.seed_everything(0)
    x = torch.randn(3200, 32)
    rows = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=32, shuffle=True)
    trainer = L.Trainer(
        max_epochs=3,
        accelerator="auto",
        logger=False,
        callbacks=[BTLightning(), ModelCheckpoint(every_n_train_steps=50, save_top_k=-1)],
    )
    trainer.fit(Net(), rows)  # resumes by itself


if __name__ == "__main__":
    main()
'''
_CONFIG: Final = '''"""The job of train.py, for `bt-lightning run` and `truss train push`."""

from truss.base.truss_config import Accelerator, AcceleratorSpec
from truss_train import definitions

runtime = definitions.Runtime(
    start_commands=[
        "python -c 'import bt_lightning' 2>/dev/null || pip install bt-lightning",
        "python train.py",
    ],
    checkpointing_config=definitions.CheckpointingConfig(enabled=True),
)
project = definitions.TrainingProject(
    name={project},
    job=definitions.TrainingJob(
        image=definitions.Image(base_image={image}),
        compute=definitions.Compute(
            accelerator=AcceleratorSpec(accelerator=Accelerator.{kind}, count={count}),
        ),
        runtime=runtime,
    ),
)
'''


def training_script() -> str:
    """A Lightning script that runs anywhere in some seconds."""
    return _SCRIPT


def config_file(project: str, image: str, kind: str, count: int) -> str:
    """The `config.py` that runs it; `kind` is an accelerator of truss, as `H100`."""
    return _CONFIG.format(
        project=_literal(project),
        image=_literal(image),
        kind=kind.upper(),
        count=count,
    )


def _literal(text: str) -> str:
    """A Python literal in double quotes; what UTF-8 cannot encode is escaped."""
    quoted = json.dumps(text, ensure_ascii=False)
    return quoted.encode("utf-8", "backslashreplace").decode()
