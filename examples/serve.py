"""Serves the newest checkpoint over HTTP, by its `bt://` name: `python examples/serve.py --once`.

If the store holds no model yet, it trains one first: the GPT of `lightning_gpt.py`, which sorts six
digits. With `--once` it asks itself and ends; without, it serves until Ctrl-C:
`curl -H 'Content-Type: application/json' -d '{"digits": [5, 1, 9, 0, 3, 2]}' localhost:8000/sort`.
To begin anew, delete the folder `serve_run`. Needs `pip install fastapi uvicorn`.

    step 50: loss 0.3598
    ...
    step 200: loss 0.0173
    POST /sort [5, 1, 9, 0, 3, 2]: [0, 1, 2, 3, 5, 9]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import threading
import urllib.request
import warnings
from pathlib import Path
from typing import Annotated

import lightning as L
import torch
import uvicorn
from fastapi import FastAPI
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_gpt import DIGITS, GPT, ShowLoss, rows_to_sort, sort_with
from pydantic import BaseModel, Field
from torch.utils.data import DataLoader, TensorDataset

from bt_lightning import BTLightning

FOLDER = Path("serve_run").absolute()
PROJECT, JOB = "sorting", "sorter"
URL = f"bt://{PROJECT}@{JOB}"
STEPS = 200
QUESTION = [5, 1, 9, 0, 3, 2]


class Question(BaseModel):
    digits: Annotated[
        list[Annotated[int, Field(ge=0, le=9)]], Field(min_length=DIGITS, max_length=DIGITS)
    ]


def train() -> None:
    """Train, publish, and do nothing if that is done; what was killed goes on."""
    L.seed_everything(7, verbose=False)
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=FOLDER / "disk",
        max_steps=STEPS,
        gradient_clip_val=1.0,
        callbacks=[
            BTLightning(project=PROJECT, job=JOB),
            ModelCheckpoint(every_n_train_steps=25),
            ShowLoss(),
        ],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    rows = TensorDataset(*rows_to_sort(6400, seed=0))
    model = GPT(vocabulary=10, length=2 * DIGITS - 1, width=64, learning_rate=4e-3, dropout=0.0)
    trainer.fit(model, DataLoader(rows, batch_size=64, shuffle=True))


def make_app() -> FastAPI:
    """The server of the newest checkpoint, which is read from the store, every block verified."""
    model = GPT.load_from_checkpoint(URL, map_location="cpu").eval()
    app = FastAPI()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"model": URL}

    @app.post("/sort")
    def sort(question: Question) -> dict[str, list[int]]:
        with torch.inference_mode():
            answer = sort_with(model, torch.tensor([question.digits]))
        return {"digits": answer[0].tolist()}

    return app


def ask(address: str, digits: list[int]) -> list[int]:
    """What any client does."""
    request = urllib.request.Request(
        f"{address}/sort",
        json.dumps({"digits": digits}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["digits"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--once", action="store_true", help="ask one question, and end")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any free one")
    words = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # no tips
    warnings.filterwarnings("ignore", module="lightning")  # nor of workers: the rows are in memory
    torch.set_num_threads(1)  # the model is tiny
    os.environ.setdefault("BT_STORE_URL", str(FOLDER / "store"))  # or s3://bucket/runs

    train()
    config = uvicorn.Config(
        make_app(), host="127.0.0.1", port=0 if words.once else words.port, log_level="warning"
    )
    server, socket = uvicorn.Server(config), config.bind_socket()
    socket.listen()  # from now on requests wait until the server is up
    address = f"http://127.0.0.1:{socket.getsockname()[1]}"
    if not words.once:
        print(f"serving {URL} on {address}", flush=True)
        server.run(sockets=[socket])
        return
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    try:
        print(f"POST /sort {QUESTION}: {ask(address, QUESTION)}", flush=True)
    finally:
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    main()
