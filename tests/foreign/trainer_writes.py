"""Writes checkpoints as the HF Trainer does, in its order and in place, fast: it imports no torch.

As a script: `trainer_writes.py ROOT SEED` goes on behind the newest whole one, until it is killed.
"""

from __future__ import annotations

import json
import pickle
import random
import re
import shutil
import sys
import threading
import zipfile
from pathlib import Path

ARGUMENTS = {"save_only_model": False, "save_total_limit": 2}


def safetensors(seed, elements=5000):
    """A file's bytes: one tensor of random bytes."""
    data = random.Random(seed).randbytes(4 * elements)
    header = {"w": {"dtype": "F32", "shape": [elements], "data_offsets": [0, len(data)]}}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def save_torch(file, value, seed=0, size=3000):
    """As `torch.save`: an uncompressed zip file, written from its beginning to its end."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(value))
        archive.writestr("archive/data/0", random.Random(seed).randbytes(size))


def save(root, step, arguments=ARGUMENTS, limit=2, pause=lambda: None, run=""):
    """One save, and the deletion of what `limit` leaves out; its bytes are those of the `run`."""
    folder = root / f"checkpoint-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(config))
    pause()
    with (folder / "model.safetensors").open("wb") as file:
        data = safetensors(f"{run} {step}")
        for start in range(0, len(data), 4096):
            file.write(data[start : start + 4096])
            file.flush()
            pause()
    save_torch(folder / "training_args.bin", arguments)
    pause()
    state = {"state": {}, "step": step, "run": run}
    save_torch(folder / "optimizer.pt", state, f"{run} {step}", 20_000)
    pause()
    save_torch(folder / "scheduler.pt", {"last_epoch": step, "run": run})
    save_torch(folder / "rng_state.pth", {"python": step, "run": run})
    pause()
    history = [{"step": step, "epoch": 0.5, "loss": 1 / step, "eval_loss": 2 / step}]
    state = {"epoch": 0.5, "global_step": step, "log_history": history, "run": run}
    (folder / "trainer_state.json").write_text(json.dumps(state, indent=2, sort_keys=True) + "\n")
    pause()
    for old in steps(root)[: -limit or None] if limit else ():
        for file in sorted((root / f"checkpoint-{old}").iterdir(), key=hash):
            file.unlink()
            pause()
        shutil.rmtree(root / f"checkpoint-{old}", ignore_errors=True)


def steps(root):
    """Of all checkpoints in the folder, whole or not."""
    names = [re.fullmatch(r"checkpoint-(\d+)", one.name) for one in root.iterdir()]
    return sorted(int(name[1]) for name in names if name)


def is_whole(folder, step):
    """Whether every byte of one save of one run is there, as `save` wrote it."""
    try:
        state = json.loads((folder / "trainer_state.json").read_text())
        run = state["run"]
        with zipfile.ZipFile(folder / "optimizer.pt") as archive:
            saved = pickle.loads(archive.read("archive/data.pkl"))
            written = random.Random(f"{run} {step}").randbytes(20_000)
            same = archive.read("archive/data/0") == written and saved["run"] == run
        for name in ("scheduler.pt", "rng_state.pth"):
            with zipfile.ZipFile(folder / name) as archive:
                same = same and pickle.loads(archive.read("archive/data.pkl"))["run"] == run
        zipfile.ZipFile(folder / "training_args.bin").close()
        weights = (folder / "model.safetensors").read_bytes() == safetensors(f"{run} {step}")
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return False
    return same and weights and state["global_step"] == step


def main():
    root, draw = Path(sys.argv[1]), random.Random(sys.argv[2])
    root.mkdir(exist_ok=True)

    def pause():
        if draw.random() < 0.2:
            threading.Event().wait(draw.random() * 0.02)

    whole = [step for step in steps(root) if is_whole(root / f"checkpoint-{step}", step)]
    step = max(whole, default=0) - draw.choice((0, 0, 2))  # at times it goes back, and over one
    print("begins", flush=True)
    while True:
        step = max(step, 0) + 2
        save(root, step, pause=pause, run=sys.argv[2])
        threading.Event().wait(draw.choice((0.0, 0.05, 0.4)))


if __name__ == "__main__":
    main()
