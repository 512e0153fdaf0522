"""How long until a save of a training run is safe in a store, next to what it cannot undercut.

Ours is a Lightning run with two saves, of which the second counts: from the call of the save to
the manifest in the store, with the bytes durable on the disk as well. Next to it, each in a process
of its own and in another order each time: a bare `write` and `fsync` of the same bytes, and the
fastest client sending them from memory. Rows are appended to `benchmarks/results/durability.jsonl`;
the medians are printed.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import workload
from servers import KEPT, KEY, SECRET, Server, start

RESULTS = Path(__file__).with_name("results") / "durability.jsonl"
KINDS = ("ours", "disk", "obstore")
TENSORS = 8
STEP_S = 1.0
STEPS = 8
EVERY = 4


def ours(server: Server, folder: Path, size: int) -> float:
    """Seconds until the second save of a run is committed in the store."""
    from datetime import timedelta

    import torch
    from stall_run import Waiting

    torch.set_num_threads(1)
    import lightning as L
    from lightning.pytorch.callbacks import ModelCheckpoint

    from bt_lightning import BTLightning
    from bt_lightning.localdir.event_log import read_events

    options = {
        "key": KEY,
        "secret": SECRET,
        "endpoint_url": server.url,
        "client_kwargs": {"region_name": "us-east-1"},
    }
    trainer = L.Trainer(
        max_steps=STEPS,
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            BTLightning(
                folder,
                store=f"s3://{KEPT}/{uuid.uuid4().hex}",  # nothing there to resume from
                storage_options=options,
                drain_timeout=timedelta(minutes=2),
            ),
            ModelCheckpoint(every_n_train_steps=EVERY, save_top_k=1, save_on_train_epoch_end=False),
        ],
    )
    batches = torch.utils.data.DataLoader(range(STEPS), num_workers=0)
    trainer.fit(Waiting(size, TENSORS, STEP_S), batches)
    found = [event for event in read_events(folder) if event["event"] == "published"]
    assert len(found) == STEPS // EVERY, found
    assert found[-1]["bytes"] >= size
    return found[-1]["remote_durable_s"]


def disk(folder: Path, memory: mmap.mmap) -> float:
    """Seconds of a bare write and fsync."""
    started = time.perf_counter()
    with (folder / "data").open("xb", buffering=0) as file:
        view = memoryview(memory)
        while view:
            view = view[file.write(view[: 16 * 2**20]) :]
        os.fsync(file.fileno())
    return time.perf_counter() - started


def client(server: Server, memory: mmap.mmap) -> float:
    """Seconds of an upload by the fastest client, from memory."""
    import obstore
    from client_tools import PART
    from clients import Obstore

    store = Obstore(server, KEPT, 8).store
    started = time.perf_counter()
    obstore.put(store, "up/data", memory, chunk_size=PART, max_concurrency=8)
    return time.perf_counter() - started


def once(kind: str, server: Server, folder: Path, size: int) -> float:
    if kind == "ours":
        return ours(server, folder, size)
    memory = mmap.mmap(-1, size)
    block = os.urandom(16 * 2**20)
    for offset in range(0, size, len(block)):
        piece = block[: size - offset]
        memory[offset : offset + len(piece)] = piece
    return disk(folder, memory) if kind == "disk" else client(server, memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, default=1_500_000_000)
    parser.add_argument("--dir", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of the raw rows")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        spec = json.loads(options.one)
        seconds = once(spec["kind"], Server(**spec["server"]), Path(spec["folder"]), spec["size"])
        print(json.dumps(seconds), flush=True)
        return
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with (
        tempfile.TemporaryDirectory(dir=options.dir) as place,
        start("sink", Path(place)) as server,
    ):
        for repeat in range(options.repeats):
            for kind in random.sample(KINDS, len(KINDS)):
                folder = Path(place) / kind
                folder.mkdir()
                os.sync()
                spec = {"kind": kind, "server": asdict(server), "folder": str(folder)}
                words = [
                    sys.executable,
                    __file__,
                    "--one",
                    json.dumps({**spec, "size": options.size}),
                ]
                done = subprocess.run(
                    words,
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=300,
                    env={**os.environ, **server.environment()},
                )
                if done.returncode:
                    sys.exit(f"{kind} failed:\n{done.stderr[-3000:]}")
                seconds[kind].append(json.loads(done.stdout.splitlines()[-1]))
                shutil.rmtree(folder)
                workload.clear(server, ("",))
                row = {
                    "case": "durability",
                    "client": kind,
                    "repeat": repeat,
                    "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                    "size": options.size,
                    "seconds": seconds[kind][-1],
                }
                print(f"{repeat} {kind}: {row['seconds']:.2f} s", flush=True)
                options.results.parent.mkdir(exist_ok=True)
                with options.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    slower = max(medians["disk"], medians["obstore"])
    print("\n| | s |\n|---|---|")
    for kind, median in medians.items():
        print(f"| {kind} | {median:.2f} |")
    print(f"\nours is {medians['ours'] / slower:.2f} times the slower of the others")


if __name__ == "__main__":
    main()
