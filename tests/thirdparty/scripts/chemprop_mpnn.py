"""A message passing network of chemprop, as in its training notebook."""

import lightning.pytorch as pl
import numpy as np
import torch
from chemprop import data, featurizers, models, nn
from lightning.pytorch.callbacks import ModelCheckpoint
from results import report

pl.seed_everything(0)
chains = ["C" * n + end for n in range(1, 25) for end in ("", "O", "N", "Cl", "C(=O)O")]
weights = np.array([[len(smi) + 3.0 * ("O" in smi)] for smi in chains])
points = [data.MoleculeDatapoint.from_smi(smi, y) for smi, y in zip(chains, weights, strict=True)]
mols = [point.mol for point in points]
parts = data.make_split_indices(mols, "random", (0.8, 0.1, 0.1), seed=0)
train, val, test = data.split_data_by_indices(points, *parts)
featurizer = featurizers.SimpleMoleculeMolGraphFeaturizer()
train_set = data.MoleculeDataset(train[0], featurizer)
scaler = train_set.normalize_targets()
val_set = data.MoleculeDataset(val[0], featurizer)
val_set.normalize_targets(scaler)
test_set = data.MoleculeDataset(test[0], featurizer)

mpnn = models.MPNN(
    nn.BondMessagePassing(d_h=32),
    nn.MeanAggregation(),
    nn.RegressionFFN(
        input_dim=32,
        hidden_dim=16,
        dropout=0.1,
        output_transform=nn.UnscaleTransform.from_standard_scaler(scaler),
    ),
    batch_norm=True,
    metrics=[nn.metrics.RMSE(), nn.metrics.MAE()],
)
best = ModelCheckpoint(
    "checkpoints", "best-{epoch}-{val_loss:.2f}", "val_loss", mode="min", save_last=True
)
trainer = pl.Trainer(
    logger=False,
    enable_checkpointing=True,
    enable_progress_bar=True,
    accelerator="cpu",
    devices=1,
    max_epochs=10,
    callbacks=[best],
)
trainer.fit(
    mpnn,
    data.build_dataloader(train_set, batch_size=16, seed=0),
    data.build_dataloader(val_set, batch_size=16, shuffle=False),
)
tests = data.build_dataloader(test_set, shuffle=False)
(tested,) = trainer.test(dataloaders=tests, weights_only=False)
loaded = models.MPNN.load_from_checkpoint(best.best_model_path)
with torch.inference_mode():
    answers = pl.Trainer(logger=False, accelerator="cpu").predict(loaded, tests)
report(tested=tested, answers=answers, weights=mpnn.state_dict(), best=loaded.state_dict())
