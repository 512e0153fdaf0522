"""What pages take for given in their snippets: a model, its data, and where things are."""

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch[0]).square().mean()
        self.log("loss", loss)
        return loss

    def test_step(self, batch, batch_idx):
        self.log("tested", self.layer(batch[0]).square().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


class Data(L.LightningDataModule):
    def train_dataloader(self):
        rows = torch.randn(160, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(rows), batch_size=8, shuffle=True)

    test_dataloader = train_dataloader


model, datamodule = Net(), Data()
