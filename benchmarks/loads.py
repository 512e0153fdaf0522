"""Loads of sharded checkpoints from a cold page cache, ours and `dcp.load`, on ranks of gloo.

Both systems save the same state (weights by FSDP2, two moments and a step for each) on so many
ranks, then load it into live tensors on another number, in turns in the same processes: the cache
is dropped, all ranks begin together, and the slowest one's seconds count. Bytes are those of
read(2) and its kin, by `/proc/self/io`. Each system loads once before, unmeasured. Rows are
appended to benchmarks/results/loads.jsonl. Dropping the cache needs root; without it the files'
pages are given back by posix_fadvise. The floor is a direct read of the same bytes.

    python benchmarks/loads.py --dir FOLDER --saved 2 --loaded 3
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import shutil
import socket
import statistics
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from stall import commit
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

RESULTS = Path(__file__).with_name("results") / "loads.jsonl"
WIDTH = 1024
SYSTEMS = ("bt_lightning", "dcp.load")
FLOOR = "direct"
"""Each rank reads its share of the same files past the page cache, and does nothing with it."""
PIECE = 4 * 1024 * 1024


class State:
    """A module whose weights are cut over all ranks, and AdamW with its moments."""

    def __init__(self, size: int, tensors: int, cut: str, *, filled: bool) -> None:
        """`tensors` counts weights, moments and steps; `cut` is `rows` or `columns`."""
        layers = tensors // 4
        rows = size // 4 // 3 // layers // WIDTH
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        torch.manual_seed(0)
        self.module = torch.nn.ModuleList(
            torch.nn.Linear(WIDTH, rows, bias=False) for _ in range(layers)
        )
        for layer in self.module:
            if cut == "rows":
                fully_shard(layer, mesh=mesh)
            else:
                part = distribute_tensor(layer.weight.detach(), mesh, [Shard(1)])
                layer.weight = torch.nn.Parameter(part)
        self.optimizer = torch.optim.AdamW(self.module.parameters(), foreach=False)
        for weight in self.module.parameters():
            weight.grad = torch.zeros_like(weight)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if filled:
            with torch.no_grad():
                for number, tensor in enumerate(self.tensors()):
                    tensor.to_local().normal_(number)
        else:
            with torch.no_grad():
                for tensor in self.tensors():
                    tensor.to_local().zero_()

    def tensors(self):
        for weight in self.module.parameters():
            state = self.optimizer.state[weight]
            yield from (weight, state["exp_avg"], state["exp_avg_sq"])

    @property
    def own_bytes(self) -> int:
        return sum(each.to_local().nbytes for each in self.tensors())

    def sums(self) -> list[float]:
        """Of each tensor, whole: equal if all ranks have what was saved."""
        found = torch.stack([each.detach().to_local().double().sum() for each in self.tensors()])
        dist.all_reduce(found)
        return found.tolist()

    def for_dcp(self) -> dict[str, object]:
        names = {weight: name for name, weight in self.module.named_parameters()}
        states = {names[each]: dict(state) for each, state in self.optimizer.state.items()}
        return {"model": dict(self.module.state_dict()), "optimizer": states}


def save(rank: int, ranks: int, port: int, options: argparse.Namespace) -> None:
    """One rank of a save by both systems."""
    begin(rank, ranks, port)
    from bt_lightning import Checkpointer

    state = State(options.size, options.tensors, "rows", filled=True)
    with Checkpointer(options.dir / "ours") as saver:
        saver.load_latest({"model": state.module, "optimizer": state.optimizer})
        saver.save({"model": state.module, "optimizer": state.optimizer}, 1)
    dcp.save(state.for_dcp(), checkpoint_id=options.dir / "dcp")
    sums = state.sums()
    if not rank:
        (options.dir / "sums.json").write_text(json.dumps(sums))
    dist.destroy_process_group()


def load(rank: int, ranks: int, port: int, options: argparse.Namespace) -> None:
    """One rank of the loads; rank 0 writes the rows."""
    begin(rank, ranks, port)
    state = State(options.size, options.tensors, options.cut, filled=False)
    expected = torch.tensor(json.loads((options.dir / "sums.json").read_text()))
    manifest = next((options.dir / "ours").glob("*/bt_manifest.json"))
    rows = []
    order = random.Random(0)
    for repeat in range(-1, options.repeats):
        turns = (*SYSTEMS, FLOOR)
        for system in order.sample(turns, len(turns)):
            for tensor in state.tensors():
                tensor.detach().to_local().zero_()
            dist.barrier()
            if not rank and not options.warm:
                drop_caches(options.dir)
            dist.barrier()
            before, cpu, began = read_bytes(), time.process_time(), time.monotonic()
            if system == "dcp.load":
                dcp.load(state.for_dcp(), checkpoint_id=options.dir / "dcp")
            elif system == FLOOR:
                read_share([*manifest.parent.glob("*.safetensors")], rank, ranks)
            else:
                load_ours(manifest.parent, state)
            took = time.monotonic() - began
            figures = (took, time.process_time() - cpu, read_bytes() - before, state.own_bytes)
            found: list[tuple[float, ...]] = [()] * ranks
            dist.all_gather_object(found, figures)
            if system != FLOOR and not torch.allclose(
                torch.tensor(state.sums()), expected, rtol=1e-6
            ):
                sys.exit(f"{system} loaded other values")
            if rank or repeat < 0:
                continue
            rows.append(
                {
                    "system": system,
                    "repeat": repeat,
                    "seconds": round(max(each[0] for each in found), 4),
                    "cpu_s": round(sum(each[1] for each in found), 4),
                    "read_of_own": [round(each[2] / each[3], 3) for each in found],
                }
            )
    if not rank:
        report(rows, options, json.loads(manifest.read_text()).get("block_bytes"))
    dist.destroy_process_group()


def load_ours(path: Path, state: State) -> None:
    from bt_lightning.session.load_in_place import LoadInPlace
    from bt_lightning.store.transfer.files_reader import DirectoryReader

    with DirectoryReader(path) as reader:
        LoadInPlace(reader).fill(state.module, [state.optimizer])


def read_share(files: list[Path], rank: int, ranks: int) -> None:
    pieces = [(file, at) for file in files for at in range(0, file.stat().st_size, PIECE)]
    share = -(-len(pieces) // ranks)
    opened = {file: os.open(file, os.O_RDONLY | os.O_DIRECT) for file in files}
    with mmap.mmap(-1, PIECE) as buffer:
        for file, at in pieces[rank * share : (rank + 1) * share]:
            os.preadv(opened[file], [buffer], at)
    for descriptor in opened.values():
        os.close(descriptor)


def begin(rank: int, ranks: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=ranks)


def read_bytes() -> int:
    """Bytes that this process asked the kernel for, from a disk or from its cache."""
    text = Path("/proc/self/io").read_text()
    return int(dict(line.split(": ") for line in text.splitlines())["rchar"])


def drop_caches(folder: Path) -> None:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        for file in folder.rglob("*"):
            if file.is_file():
                with file.open("rb") as stream:
                    os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def report(rows: list[dict], options: argparse.Namespace, block_bytes: int) -> None:
    facts = {
        "size": options.size,
        "tensors": options.tensors,
        "saved": options.saved,
        "loaded": options.loaded,
        "cut": options.cut,
        "cold": not options.warm,
        "block_bytes": block_bytes,
        "commit": commit(),
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "load": round(os.getloadavg()[0], 1),
    }
    if not options.dry:
        with RESULTS.open("a") as stream:
            stream.writelines(json.dumps({**facts, **row}) + "\n" for row in rows)
    medians = {}
    for system in (*SYSTEMS, FLOOR):
        mine = [row for row in rows if row["system"] == system]
        medians[system] = statistics.median(row["seconds"] for row in mine)
        cpu = statistics.median(row["cpu_s"] for row in mine)
        most = max(max(row["read_of_own"]) for row in mine)
        seconds = ", ".join(f"{row['seconds']:.2f}" for row in mine)
        print(f"{system:13} {medians[system]:.3f} s ({seconds}), CPU {cpu:.2f} s, read {most:.2f}x")
    ours, theirs, floor = (medians[system] for system in (*SYSTEMS, FLOOR))
    text = f"{options.saved} -> {options.loaded} by {options.cut}: {ours / theirs:.2f} of dcp.load"
    text += f", {ours / floor:.2f} of the floor"
    print(f"{text}, load {facts['load']}", flush=True)


def main() -> None:
    """Save once, and load."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--size", type=int, default=500_000_000)
    parser.add_argument("--tensors", type=int, default=80)
    parser.add_argument("--saved", type=int, default=2)
    parser.add_argument("--loaded", type=int, default=3)
    parser.add_argument("--cut", choices=("rows", "columns"), default="rows")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warm", action="store_true", help="leave the page cache as it is")
    parser.add_argument("--dry", action="store_true", help="write no rows")
    options = parser.parse_args()
    options.dir = Path(tempfile.mkdtemp(dir=options.dir, prefix="bt_loads_"))
    try:
        for act, ranks in ((save, options.saved), (load, options.loaded)):
            mp.spawn(act, (ranks, free_port(), options), nprocs=ranks)
    finally:
        shutil.rmtree(options.dir)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    main()
