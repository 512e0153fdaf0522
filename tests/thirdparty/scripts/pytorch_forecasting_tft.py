"""A TemporalFusionTransformer, as in the tutorial: a fit, and the best model loaded."""

import lightning.pytorch as pl
import numpy as np
import pandas as pd
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from pytorch_forecasting import GroupNormalizer, TemporalFusionTransformer, TimeSeriesDataSet
from pytorch_forecasting.metrics import QuantileLoss
from results import report

pl.seed_everything(42)
steps = np.arange(60)
frames = []
for shop in range(6):
    noise = np.random.default_rng(shop).normal(0, 0.1, len(steps))
    sold = 2 + shop + np.sin(steps / 5 + shop) + noise
    weekday = (steps % 7).astype(str)
    frames.append(pd.DataFrame({"shop": str(shop), "day": steps, "sold": sold, "weekday": weekday}))
data = pd.concat(frames, ignore_index=True)

training = TimeSeriesDataSet(
    data[data.day < 50],
    time_idx="day",
    target="sold",
    group_ids=["shop"],
    max_encoder_length=20,
    max_prediction_length=5,
    static_categoricals=["shop"],
    time_varying_known_categoricals=["weekday"],
    time_varying_known_reals=["day"],
    time_varying_unknown_reals=["sold"],
    target_normalizer=GroupNormalizer(groups=["shop"], transformation="softplus"),
    add_relative_time_idx=True,
    add_target_scales=True,
)
validation = TimeSeriesDataSet.from_dataset(training, data, predict=True, stop_randomization=True)
train_dataloader = training.to_dataloader(train=True, batch_size=16, num_workers=0)
val_dataloader = validation.to_dataloader(train=False, batch_size=16, num_workers=0)


def make_model(learning_rate):
    return TemporalFusionTransformer.from_dataset(
        training,
        learning_rate=learning_rate,
        hidden_size=8,
        attention_head_size=2,
        dropout=0.1,
        hidden_continuous_size=4,
        loss=QuantileLoss(),
        log_interval=-1,
        reduce_on_plateau_patience=2,
    )


early_stop_callback = EarlyStopping(monitor="val_loss", min_delta=1e-4, patience=5, mode="min")
trainer = pl.Trainer(
    max_epochs=4,
    accelerator="cpu",
    enable_model_summary=True,
    gradient_clip_val=0.1,
    limit_train_batches=10,
    callbacks=[LearningRateMonitor(), early_stop_callback],
    logger=CSVLogger("logs"),
)
trainer.fit(make_model(0.03), train_dataloaders=train_dataloader, val_dataloaders=val_dataloader)

best = TemporalFusionTransformer.load_from_checkpoint(
    trainer.checkpoint_callback.best_model_path, weights_only=False
)
predictions = best.predict(val_dataloader, return_y=True, trainer_kwargs={"accelerator": "cpu"})
report(
    weights=best.state_dict(),
    predictions=predictions.output,
    score=trainer.checkpoint_callback.best_model_score,
    hyperparameters=sorted(best.hparams),
    last=trainer.lightning_module.state_dict(),
    metrics=dict(trainer.callback_metrics),
    steps=trainer.global_step,
)
