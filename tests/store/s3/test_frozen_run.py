"""A real training of which 99 % of the bytes never change, restarted after each save."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest

from bt_lightning.store.catalog.listing import list_job
from bt_lightning.store.s3.s3_store import S3Store
from bt_lightning.store.transfer.checkpoint_reader import StoreReader
from bt_lightning.store.transfer.unpublish import unpublish

MIB = 1024 * 1024
FLOATS = MIB // 4
PREFIX = "training_projects/p/jobs/j/rank-0"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(500),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance\\(treespec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pkg_resources"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
]


@pytest.fixture
def model():
    """Make a module with 990 MiB that are frozen, and 3 that are trained, with Adam's 6."""
    import lightning.pytorch as pl
    import torch

    class Adapted(pl.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(7)
            self.backbone = torch.nn.ParameterList(
                torch.nn.Parameter(torch.rand(33 * FLOATS), requires_grad=False) for _ in range(30)
            )
            self.adapters = torch.nn.ParameterList(
                torch.nn.Parameter(torch.rand(FLOATS // 10)) for _ in range(30)
            )

        def training_step(self, batch, _):
            return sum((adapter * batch.mean()).square().mean() for adapter in self.adapters)

        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.rand(8, 4))

        def configure_optimizers(self):
            return torch.optim.Adam(self.adapters.parameters(), lr=0.1)

    return Adapted


def test_of_a_frozen_backbone_next_to_nothing_is_sent_again(proxied, weed, model, tmp_path):
    """Each checkpoint stands by itself, also when the first, which was sent whole, is deleted."""
    import lightning.pytorch as pl
    import torch
    from lightning.pytorch.callbacks import ModelCheckpoint

    from bt_lightning import BTLightning
    from bt_lightning.restore.load_checkpoint import load_checkpoint as restored
    from bt_lightning.session.fit_selection import process_fits

    proxy = proxied(weed)
    url = f"s3://bucket/{uuid.uuid4().hex}"
    options = {
        **weed.options,
        "client_kwargs": {"endpoint_url": proxy.endpoint, "region_name": "us-east-1"},
    }
    sent, states = [], []
    for steps in (1, 2, 3):
        proxy.reset()
        process_fits.clear()  # as in a process of its own
        callback = BTLightning(
            tmp_path / "run",
            store=url,
            storage_options=options,
            project="p",
            job="j",
            drain_timeout=timedelta(minutes=5),
        )
        keep_all = ModelCheckpoint(
            filename="{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False
        )
        trainer = pl.Trainer(
            max_steps=steps,
            callbacks=[callback, keep_all],
            logger=False,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trained = model()
        trainer.fit(trained)
        assert trainer.global_step == steps
        sent.append(proxy.received)
        states.append({name: tensor.clone() for name, tensor in trained.state_dict().items()})
    assert sent[0] >= 990 * MIB
    assert max(sent[1:]) <= 0.015 * sent[0], sent
    store = S3Store(url, options)
    folders = sorted(list_job(store, PREFIX).committed)
    assert len(folders) == 3

    def load(folder):
        return restored(StoreReader(store, PREFIX, folder))["state_dict"]

    def same(one, two):
        return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)

    assert same(load(folders[1]), states[1])
    assert not same(states[1], states[2])
    unpublish(store, PREFIX, folders[0])
    assert same(load(folders[1]), states[1])
    assert same(load(folders[2]), states[2])
