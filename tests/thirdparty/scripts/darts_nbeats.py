"""Two models of darts, one with its own checkpoints, as in its user guide."""

import numpy as np
from darts import TimeSeries
from darts.dataprocessing.transformers import Scaler
from darts.metrics import mape
from darts.models import BlockRNNModel, NBEATSModel
from pytorch_lightning.callbacks import EarlyStopping
from results import report

steps = np.arange(160)
noise = np.random.default_rng(0).normal(0, 0.05, len(steps))
series = TimeSeries.from_values((10 + np.sin(steps / 6) + 0.01 * steps + noise).astype(np.float32))
train, val = series.split_before(120)
scaler = Scaler()
train_scaled, val_scaled = scaler.fit_transform(train), scaler.transform(val)

model = NBEATSModel(
    input_chunk_length=16,
    output_chunk_length=4,
    num_stacks=2,
    num_blocks=1,
    num_layers=2,
    layer_widths=16,
    dropout=0.1,
    n_epochs=12,
    batch_size=16,
    random_state=42,
    model_name="nbeats",
    work_dir="darts_logs",
    save_checkpoints=True,
    force_reset=True,
    pl_trainer_kwargs={
        "accelerator": "cpu",
        "callbacks": [EarlyStopping(monitor="val_loss", patience=12, min_delta=0.0)],
    },
)
model.fit(train_scaled, val_series=val_scaled, verbose=False)
forecast = scaler.inverse_transform(model.predict(n=12, series=train_scaled, verbose=False))

best = NBEATSModel.load_from_checkpoint(model_name="nbeats", work_dir="darts_logs", best=True)
best_forecast = best.predict(n=12, series=train_scaled, verbose=False)

rnn = BlockRNNModel(
    model="LSTM",
    input_chunk_length=16,
    output_chunk_length=4,
    hidden_dim=8,
    n_epochs=3,
    batch_size=16,
    random_state=1,
    pl_trainer_kwargs={"accelerator": "cpu"},
)
rnn.fit(train_scaled, verbose=False)
rnn.save("rnn.pt")
rnn_forecast = BlockRNNModel.load("rnn.pt").predict(n=8, series=train_scaled, verbose=False)

report(
    forecast=forecast.values(),
    mape=mape(val, forecast),
    epochs=model.epochs_trained,
    weights=model.model.state_dict(),
    best=best_forecast.values(),
    best_weights=best.model.state_dict(),
    rnn=rnn_forecast.values(),
    rnn_weights=rnn.model.state_dict(),
    rnn_epochs=rnn.epochs_trained,
)
