"""Whether each system saves with its defaults here, and whether its load notices one flipped bit.

Each system saves 8 MB in a process of its own, as its first example does; then one bit in the
middle of its largest file is flipped, and it loads. Rows go to `benchmarks/results/promises.jsonl`;
run it with `python benchmarks/promises.py --dir FOLDER`, on the file system in question.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import socket
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

import torch
from stall import commit

RESULTS = Path(__file__).with_name("results") / "promises.jsonl"


def state() -> dict[str, object]:
    torch.manual_seed(0)
    return {"state_dict": {"weight": torch.randn(2_000_000)}, "global_step": 1, "epoch": 0}


class Ours:
    def save(self, path: Path) -> None:
        from bt_lightning import BTCheckpointIO

        BTCheckpointIO().save_checkpoint(state(), path)

    def load(self, path: Path) -> torch.Tensor:
        from bt_lightning import BTCheckpointIO

        return BTCheckpointIO().load_checkpoint(path)["state_dict"]["weight"]


class Plain:
    def __init__(self) -> None:
        from lightning.fabric.plugins import TorchCheckpointIO

        self.io = TorchCheckpointIO()

    def save(self, path: Path) -> None:
        self.io.save_checkpoint(state(), path)

    def load(self, path: Path) -> torch.Tensor:
        return self.io.load_checkpoint(path)["state_dict"]["weight"]


class Dcp:
    def save(self, path: Path) -> None:
        import torch.distributed.checkpoint as dcp

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]))
        torch.distributed.init_process_group("gloo", rank=0, world_size=1)
        dcp.async_save(state(), checkpoint_id=path).result()

    def load(self, path: Path) -> torch.Tensor:
        import torch.distributed.checkpoint as dcp

        target = {"state_dict": {"weight": torch.zeros(2_000_000)}}
        dcp.load(target, checkpoint_id=path)
        return target["state_dict"]["weight"]


class TorchCheckpointing:
    def save(self, path: Path) -> None:
        from torch_checkpointing import CheckpointManager

        manager = CheckpointManager()
        manager.save(str(path), state()).result()
        manager.close()

    def load(self, path: Path) -> torch.Tensor:
        from torch_checkpointing import CheckpointManager

        manager = CheckpointManager()
        target = {"state_dict": {"weight": torch.zeros(2_000_000)}}
        found = manager.load(str(path), into=target)["state_dict"]["weight"]
        manager.close()
        return found


class TorchCheckpointingBuffered(TorchCheckpointing):
    """Without its direct writes."""

    def save(self, path: Path) -> None:
        from torch_checkpointing import CheckpointManager
        from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

        storage = LocalFileSystemStorageConfig(use_direct_io=False)
        manager = CheckpointManager.Config(storage_config=storage).build()
        manager.save(str(path), state()).result()
        manager.close()


SYSTEMS = {
    "bt_lightning": Ours,
    "Lightning": Plain,
    "DCP async": Dcp,
    "torch_checkpointing": TorchCheckpointing,
    "torch_checkpointing, use_direct_io=False": TorchCheckpointingBuffered,
}


def flip(path: Path) -> None:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    largest = max(files, key=lambda each: each.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 16
    largest.write_bytes(content)


def _inside(name: str, what: str, path: Path, sender) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    system = SYSTEMS[name]()
    try:
        found = getattr(system, what)(path)
    except BaseException as error:  # noqa: BLE001 - whatever it raises is the answer
        said = str(error).partition("\n")[0].replace(str(path), "CHECKPOINT")
        sender.send(f"{type(error).__name__}: {said}"[:300])
        os._exit(0)
    right = found is None or torch.equal(found, state()["state_dict"]["weight"])
    sender.send("" if right else "other bytes, without a word")
    os._exit(0)


def ask(name: str, what: str, path: Path) -> str:
    """What went wrong; empty if nothing did."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_inside, args=(name, what, path, sender))
    process.start()
    answer = receiver.recv() if receiver.poll(120) else "no answer within 120 s"
    process.kill()
    process.join()
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, help="where to write; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        for name in SYSTEMS:
            path = Path(folder, "checkpoint")
            row = {"commit": commit(), "at": datetime.now(timezone.utc).isoformat(), "system": name}
            row["save"] = ask(name, "save", path)
            if not row["save"]:
                row["load"] = ask(name, "load", path)
                flip(path)
                row["flipped"] = ask(name, "load", path)
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps({key: row[key] for key in row if key not in {"commit", "at"}}))
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
