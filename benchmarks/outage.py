"""What it costs a training run when its store stops answering for the middle third of it.

Each run is a process of its own: device-bound steps, a save every few of them, SeaweedFS as the
store. In every second run the server is stopped (SIGSTOP: connections are taken, nothing answers)
from one third to two thirds of the steps. The time is that of the training loop, without the wait
for the store at its end; afterwards every checkpoint has to be in the store. Rows are appended to
`benchmarks/results/outage.jsonl`. Run it by `python benchmarks/outage.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

import psutil
from servers import THROWN, Server, start

RESULTS = Path(__file__).with_name("results") / "outage.jsonl"
STEPS, EVERY, STEP_S, SIZE = 90, 5, 0.05, 20 * 10**6
RUN = f"""
import sys, time, warnings
warnings.simplefilter("ignore")
import lightning as L, torch
from torch.utils.data import DataLoader, TensorDataset
from bt_lightning import BTLightning
torch.set_num_threads(1)

class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.zeros({SIZE} // 12))
    def training_step(self, batch, index):
        print("step", self.global_step, flush=True)
        time.sleep({STEP_S})
        return self.weights[:8].sum() * 0
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())
    def on_train_start(self):
        self.began = time.perf_counter()
    def on_train_end(self):
        print("took", time.perf_counter() - self.began, flush=True)

save = L.pytorch.callbacks.ModelCheckpoint(every_n_train_steps={EVERY}, save_top_k=-1)
ours = BTLightning(dir=sys.argv[1], store=sys.argv[2], job="outage")
quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False)
rows = DataLoader(TensorDataset(torch.zeros({STEPS}, 1)))
L.Trainer(max_epochs=1, accelerator="cpu", callbacks=[save, ours], **quiet).fit(Net(), rows)
"""


def once(server: Server, folder: Path, pause: psutil.Process | None) -> float:
    """Seconds of one training loop; `pause` is stopped in its middle third."""
    url = f"s3://{THROWN}/{folder.name}"
    words = [sys.executable, "-c", RUN, str(folder / "ck"), url]
    environment = {**os.environ, **server.environment()}
    took = 0.0
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:
            name, _, value = line.partition(" ")
            if name == "took":
                took = float(value)
            elif pause is not None and name == "step" and int(value) == STEPS // 3:
                pause.send_signal(signal.SIGSTOP)
            elif pause is not None and name == "step" and int(value) == 2 * STEPS // 3:
                pause.send_signal(signal.SIGCONT)
    if process.returncode:
        sys.exit(f"the training failed with {process.returncode}")
    found = (
        server.boto3()
        .get_paginator("list_objects_v2")
        .paginate(Bucket=THROWN, Prefix=f"{folder.name}/")
    )
    keys = [item["Key"] for page in found for item in page.get("Contents", ())]
    sent = sum(key.endswith("/bt_manifest.json") for key in keys)
    if sent != STEPS // EVERY:
        sys.exit(f"{sent} of {STEPS // EVERY} checkpoints are in the store")
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    times: dict[str, list[float]] = {"there": [], "away": []}
    with tempfile.TemporaryDirectory() as place, start("seaweedfs", Path(place)) as server:
        (weed,) = [p for p in psutil.process_iter() if p.name() == "weed" and place in p.cwd()]
        for repeat in range(options.repeats):
            for kind in random.sample(sorted(times), 2):
                folder = Path(place) / f"{kind}-{repeat}"
                took = once(server, folder, weed if kind == "away" else None)
                times[kind].append(took)
                at = datetime.now(timezone.utc).isoformat(timespec="seconds")
                row = {"at": at, "store": kind, "repeat": repeat, "run_s": took, "steps": STEPS}
                with RESULTS.open("a") as file:
                    file.write(json.dumps({**row, "saves": STEPS // EVERY, "bytes": SIZE}) + "\n")
                print(f"{kind} {repeat}: {took:.3f} s", flush=True)
    there, away = (statistics.median(times[kind]) for kind in ("there", "away"))
    lost = 1000 * (away - there) / (STEPS // EVERY)
    print(f"medians: {there:.3f} s with the store, {away:.3f} s without it; {lost:.1f} ms a save")


if __name__ == "__main__":
    main()
