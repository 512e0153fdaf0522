"""What the step of a save in the layout of transformers' Trainer costs, beside the stock calls.

One process trains weights with AdamW on the CPU. In each repeat, in random order: a save by
`FolderWriter`, whose copy runs beside the pause that stands for forward and backward, and the calls
that the Trainer makes (`save_file`, `torch.save`) without fsync. Times are of the training thread:
the call, and the wait before the next optimizer step; `cpu_ms` is what it computed in the call,
which the load of the machine changes little. Raw rows are appended to
`benchmarks/results/folder.jsonl`; medians are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

import safetensors.torch
import torch

import bt_lightning
from bt_lightning.session.folder_writer import Folder, FolderWriter
from bt_lightning.session.options import Options
from bt_lightning.session.rank_session import RankSession
from bt_lightning.session.ranks import Ranks
from bt_lightning.snapshot.folder_files import Content, SafetensorsFile, TorchFile

RESULTS = Path(__file__).with_name("results") / "folder.jsonl"
BEFORE_STEPS = 2
FORWARD_S = 2.0
BEFORE_S = 6.0
"""Seconds of training before the first save: the arena is made meanwhile."""


class Training:
    """Weights of `size` bytes with their moments, in `tensors` weights of which half are small."""

    def __init__(self, size: int, tensors: int) -> None:
        each = size // 4 // 3 // (tensors // 2)
        shapes = [shape for _ in range(tensors // 2) for shape in ((each,), (256,))]
        self.weights = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-4)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda s: 1 / (1 + s))
        for weight in self.weights:
            weight.grad = torch.full_like(weight, 1e-3)
        self.steps = 0

    def step(self) -> None:
        self.optimizer.step()
        self.schedule.step()
        self.steps += 1

    def states(self) -> dict[str, object]:
        named = {f"layers.{i}.weight": weight.detach() for i, weight in enumerate(self.weights)}
        return {
            "model.safetensors": named,
            "optimizer.pt": self.optimizer.state_dict(),
            "scheduler.pt": self.schedule.state_dict(),
            "rng_state.pth": {"cpu": torch.get_rng_state()},
        }

    def files(self) -> dict[str, Content]:
        states = self.states()
        weights = states.pop("model.safetensors")
        return {
            "model.safetensors": SafetensorsFile(weights),
            **{path: TorchFile(state) for path, state in states.items()},
            "trainer_state.json": json.dumps({"global_step": self.steps}).encode(),
        }


def stock(training: Training, folder: Path) -> dict[str, float]:
    """The calls of `Trainer._save_checkpoint`."""
    shutil.rmtree(folder, ignore_errors=True)
    os.sync()
    started, cpu = time.perf_counter(), time.thread_time()
    folder.mkdir(parents=True)
    states = training.states()
    safetensors.torch.save_file(
        states.pop("model.safetensors"), folder / "model.safetensors", metadata={"format": "pt"}
    )
    for path, state in states.items():
        torch.save(state, folder / path)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": training.steps}))
    cpu_ms = 1000 * (time.thread_time() - cpu)
    return {"step_ms": 1000 * (time.perf_counter() - started), "cpu_ms": cpu_ms}


class Ours:
    def __init__(self, training: Training, root: Path) -> None:
        self.training, self.root = training, root
        self.session = RankSession(Options.of(dir=str(root)).merged({}))
        self.session.open(root, Ranks.of_process_group())
        self.records = []
        self.session.begin(lambda: [training.optimizer], on_saved=self.records.append)
        self.writer = FolderWriter()
        self.saver = self.session.saves.saver
        files = training.files()
        self.saver.prepare(sum(self.writer.take(Folder(files=files, step=0)).sizes))
        self.saver.encode_early(self.writer.encode_early(files))

    def save(self) -> dict[str, float]:
        os.sync()
        started, cpu = time.perf_counter(), time.thread_time()
        folder = Folder(files=self.training.files(), step=self.training.steps)
        name = f"checkpoint-{folder.step}"
        self.session.save(self.writer, folder, self.root / name, self.root)
        call_ms, cpu_ms = 1000 * (time.perf_counter() - started), 1000 * (time.thread_time() - cpu)
        time.sleep(FORWARD_S)
        self.training.step()
        self.saver.drain()
        self.session.poll()
        record = self.records[-1]
        assert record.checkpoint_id == name
        assert record.local_durable_s
        shutil.rmtree(self.root / name)
        return {
            "step_ms": call_ms + record.guard_ms,
            "cpu_ms": cpu_ms,
            "call_ms": call_ms,
            "guard_ms": record.guard_ms,
            "copy_ms": record.copy_ms,
            "durable_s": record.local_durable_s,
            "worker_cpu_s": record.cpu_s,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1500, help="MB")
    parser.add_argument("--tensors", type=int, default=300, help="weights; an even number")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dir", default=None, help="where to write; default: a temporary folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    training = Training(options.size * 10**6, options.tensors)
    for _ in range(BEFORE_STEPS):
        training.step()
    rows = []
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        ours = Ours(training, Path(folder) / "root")
        time.sleep(BEFORE_S)
        for repeat in range(-1, options.repeats):  # the first is the first save of a run
            for who in random.sample(["bt_lightning", "stock"], 2):
                measured = ours.save() if who != "stock" else stock(training, Path(folder) / "s")
                rows.append(
                    {
                        "who": who,
                        "repeat": repeat,
                        "size": options.size * 10**6,
                        "weights": options.tensors,
                        **measured,
                        "load": os.getloadavg()[0],
                        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                        "torch": torch.__version__,
                        "bt_lightning": bt_lightning.__version__,
                        "cpus": os.cpu_count(),
                    }
                )
                print({name: rows[-1][name] for name in ("who", "repeat", "step_ms")}, flush=True)
        ours.session.finish()
    with RESULTS.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    for who in ("stock", "bt_lightning"):
        for what in ("step_ms", "cpu_ms"):
            first, *times = [row[what] for row in rows if row["who"] == who]
            print(
                f"{who:<13} {what} first {first:8.1f}, then median {statistics.median(times):8.1f},"
                f" {min(times):.1f} to {max(times):.1f}"
            )


if __name__ == "__main__":
    main()
