"""Whether anything grows over 20,000 saves: memory, descriptors, threads, files, bytes on the disk.

One training by Lightning with a save at each step, `save_top_k=2` and a folder as the store, on a
tmpfs if there is one (what is asked is not how fast a disk is). Each `EVERY` saves the training and
its worker are looked at. Rows are appended to `benchmarks/results/soak.jsonl`; the second half of
the run is compared with the first. Run it by `python benchmarks/soak.py [--saves N]`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

import psutil

RESULTS = Path(__file__).with_name("results") / "soak.jsonl"
SAVES, EVERY = 20_000, 250
GROWTH = 0.05
"""By so much the second half may be above the first, and 1 MB: allocators are not exact."""
RUN = """
import sys, warnings
warnings.simplefilter("ignore")
import lightning as L, torch
from torch.utils.data import DataLoader, TensorDataset
from bt_lightning import BTLightning
torch.set_num_threads(1)

class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 64)
    def training_step(self, batch, index):
        self.log("loss", loss := self.layer(batch[0]).pow(2).mean())
        return loss
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())
    def on_train_batch_end(self, *args):
        if self.global_step % int(sys.argv[4]) == 0:
            print(self.global_step, flush=True)
            sys.stdin.readline()

saves = int(sys.argv[3])
save = L.pytorch.callbacks.ModelCheckpoint(
    every_n_train_steps=1, save_top_k=2, monitor="step", mode="max"
)
ours = BTLightning(dir=sys.argv[1], store=sys.argv[2], project="p", job="soak")
quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False)
rows = DataLoader(TensorDataset(torch.zeros(saves, 64)))
L.Trainer(max_epochs=1, accelerator="cpu", callbacks=[save, ours], **quiet).fit(Net(), rows)
"""


def look(training: psutil.Process, root: Path, store: Path) -> dict[str, int]:
    """What there is now, of both processes and of both tiers; bytes."""
    (worker,) = [child for child in training.children() if child.name() == "bt-worker"]
    found: dict[str, int] = {}
    for name, process in (("training", training), ("worker", worker)):
        found[f"{name}_bytes"] = process.memory_full_info().uss
        found[f"{name}_descriptors"] = process.num_fds()
        found[f"{name}_threads"] = process.num_threads()
    for name, place in (("disk", root), ("store", store)):
        sizes = []
        for folder, _, files in os.walk(place):
            for file in files:
                try:
                    sizes.append(os.lstat(f"{folder}/{file}").st_size)
                except FileNotFoundError:
                    continue  # it went meanwhile
        found[f"{name}_files"], found[f"{name}_bytes"] = len(sizes), sum(sizes)
    return found


def soak(saves: int, folder: Path) -> list[dict[str, object]]:
    """Train, and look each `EVERY` saves while the training waits."""
    root, store = folder / "root", folder / "store"
    command = [sys.executable, "-c", RUN, str(root), str(store), str(saves), str(EVERY)]
    rows: list[dict[str, object]] = []
    started = time.perf_counter()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        training = psutil.Process(process.pid)
        for line in process.stdout:
            row = {"saves": int(line), "seconds": round(time.perf_counter() - started, 1)}
            rows.append({**row, **look(training, root, store)})
            process.stdin.write("\n")
            process.stdin.flush()
    if process.returncode:
        sys.exit(f"the training ended with {process.returncode}")
    return rows


def main() -> None:
    """Append the rows, and say what grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--saves", type=int, default=SAVES)
    saves = parser.parse_args().saves
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        rows = soak(saves, Path(folder))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with RESULTS.open("a") as stream:
        for row in rows:
            stream.write(json.dumps({"at": at, "commit": commit, "of": saves, **row}) + "\n")
    settled = rows[len(rows) // 4 :]  # imports, caches and the first files of events are there
    half = len(settled) // 2
    grew = False
    for name in rows[0].keys() - {"saves", "seconds"}:
        one, other = (
            statistics.median(row[name] for row in part)
            for part in (settled[:half], settled[half:])
        )
        more = other > one * (1 + GROWTH) + (10**6 if name.endswith("bytes") else 2)
        grew = grew or more
        print(f"{name:22} {one:14,.0f} {other:14,.0f}{'  GREW' if more else ''}")
    sys.exit(grew)


if __name__ == "__main__":
    main()
