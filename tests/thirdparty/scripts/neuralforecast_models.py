"""Two models of neuralforecast, as in its quickstart: fit, save, load, predict."""

import numpy as np
import pandas as pd
from neuralforecast import NeuralForecast
from neuralforecast.losses.pytorch import MQLoss
from neuralforecast.models import LSTM, NHITS
from results import report

days = pd.date_range("2020-01-01", periods=150, freq="D")
rows = [
    pd.DataFrame(
        {
            "unique_id": f"shop {shop}",
            "ds": days,
            "y": 5
            + shop
            + np.sin(np.arange(150) / 7 + shop)
            + np.random.default_rng(shop).normal(0, 0.1, 150),
        }
    )
    for shop in range(4)
]
data = pd.concat(rows, ignore_index=True)
trainer = {"accelerator": "cpu", "logger": False}
models = [
    NHITS(
        h=7,
        input_size=21,
        max_steps=60,
        val_check_steps=20,
        early_stop_patience_steps=3,
        loss=MQLoss(level=[80]),
        mlp_units=[[16, 16]] * 3,
        batch_size=4,
        windows_batch_size=32,
        dropout_prob_theta=0.1,
        random_seed=1,
        **trainer,
    ),
    LSTM(
        h=7,
        input_size=21,
        max_steps=30,
        encoder_hidden_size=8,
        decoder_hidden_size=8,
        batch_size=4,
        random_seed=2,
        enable_checkpointing=True,
        **trainer,
    ),
]
forecaster = NeuralForecast(models=models, freq="D")
forecaster.fit(df=data, val_size=14)
forecaster.save(path="saved_models", overwrite=True, save_dataset=True)
loaded = NeuralForecast.load(path="saved_models")
forecast = loaded.predict()
report(
    forecast=forecast.drop(columns=["unique_id", "ds"]).to_numpy(),
    weights=[model.state_dict() for model in forecaster.models],
)
