"""An SCVI model that keeps its best checkpoint by SaveCheckpoint, and a SCANVI made of it."""

import anndata
import numpy as np
import scvi
from results import report
from scvi.train import SaveCheckpoint

scvi.settings.seed = 0
scvi.settings.logging_dir = "scvi_log"
rng = np.random.default_rng(0)
kinds = rng.integers(0, 3, 300)
rates = rng.gamma(1.0, 2.0, (3, 40))
adata = anndata.AnnData(rng.poisson(rates[kinds]).astype(np.float32))
adata.layers["counts"] = adata.X.copy()
adata.obs["batch"] = rng.integers(0, 2, 300).astype(str)
known = rng.random(300) < 0.7
adata.obs["kind"] = np.where(known, np.char.add("kind ", kinds.astype(str)), "Unknown")
adata.obs["batch"] = adata.obs["batch"].astype("category")
adata.obs["kind"] = adata.obs["kind"].astype("category")

scvi.model.SCVI.setup_anndata(adata, layer="counts", batch_key="batch")
model = scvi.model.SCVI(adata, n_layers=1, n_hidden=16, n_latent=5)
model.train(
    max_epochs=12,
    batch_size=64,
    accelerator="cpu",
    check_val_every_n_epoch=1,
    early_stopping=True,
    early_stopping_patience=12,
    enable_checkpointing=True,
    callbacks=[
        SaveCheckpoint(monitor="elbo_validation", load_best_on_end=True, check_nan_gradients=True)
    ],
)
model.save("scvi_model", overwrite=True)
model = scvi.model.SCVI.load("scvi_model", adata)
latent = model.get_latent_representation()

scanvi = scvi.model.SCANVI.from_scvi_model(model, labels_key="kind", unlabeled_category="Unknown")
scanvi.train(max_epochs=4, batch_size=64, accelerator="cpu", n_samples_per_label=10)
scanvi.save("scanvi_model", overwrite=True)
scanvi = scvi.model.SCANVI.load("scanvi_model", adata)

report(
    weights=model.module.state_dict(),
    latent=latent,
    kinds=list(scanvi.predict()),
    scanvi_weights=scanvi.module.state_dict(),
    elbo=float(scanvi.get_elbo()),
)
