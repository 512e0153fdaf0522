"""Loads of a checkpoint from this disk, ours and plain Lightning's, cold and warm, beside floors.

Each load is a process of its own, as after a restart: memory that it gets may have to come back
from the host of a virtual machine. Floors: `direct` reads the same bytes one after the other with
O_DIRECT into one buffer, `memcpy` copies as many between memory that is there. Pages: what it costs
to get as much memory, in huge pages and in small ones. Systems are interleaved in a random order;
rows go to `benchmarks/results/local_loads.jsonl`.

    python benchmarks/local_loads.py --size 1500000000 --tensors 60 --repeats 5
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from loads import commit, drop_caches
from save import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = Path(__file__).with_name("results") / "local_loads.jsonl"
LOADS, FLOORS, PAGES = ("ours", "plain"), ("direct", "memcpy"), ("huge pages", "small pages")
_BUFFER = 16 * 1024 * 1024
_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE of Linux 5.14."""


def measured(system: str, folder: Path) -> dict[str, float]:
    """One load or floor, in this process."""
    act = prepared(system, folder)
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    kept = act()
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    del kept
    return {
        "seconds": seconds,
        "user_s": after.ru_utime - before.ru_utime,
        "system_s": after.ru_stime - before.ru_stime,
    }


def prepared(system: str, folder: Path) -> Callable[[], object]:
    """What is measured, with its imports done."""
    size = sum(file.stat().st_size for file in tensor_files(folder))
    if system == "ours":
        import bt_lightning.restore.load_checkpoint  # noqa: F401
        from bt_lightning import BTCheckpointIO

        return lambda: BTCheckpointIO().load_checkpoint(folder / "ours")
    if system == "plain":
        from lightning.fabric.plugins import TorchCheckpointIO

        return lambda: TorchCheckpointIO().load_checkpoint(folder / "plain.ckpt")
    if system == "direct":
        return lambda: [read_direct(file) for file in tensor_files(folder)]
    if system == "memcpy":
        source, target = b"x" * size, memoryview(bytearray(size))
        target[:] = source
        return lambda: target.__setitem__(slice(None), source)
    advice = mmap.MADV_HUGEPAGE if system == "huge pages" else mmap.MADV_NOHUGEPAGE
    return lambda: populated(size, advice)


def tensor_files(folder: Path) -> list[Path]:
    return sorted((folder / "ours").glob("*.safetensors"))


def read_direct(file: Path) -> None:
    buffer = mmap.mmap(-1, _BUFFER)
    descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
    offset = 0
    while count := os.preadv(descriptor, [buffer], offset):
        offset += count
        if count < _BUFFER:
            break
    os.close(descriptor)


def populated(size: int, advice: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(advice)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    ctypes.CDLL(None).madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), _POPULATE_WRITE)
    return memory


def in_own_process(system: str, folder: Path) -> dict[str, float]:
    words = [sys.executable, __file__, "--one", system, "--dir", str(folder)]
    done = subprocess.run(words, capture_output=True, check=True, text=True)
    return json.loads(done.stdout)


def make_warm(folder: Path) -> None:
    for file in (*tensor_files(folder), folder / "plain.ckpt"):
        with file.open("rb", buffering=0) as stream:
            while stream.read(_BUFFER):
                pass


def run(folder: Path, options: argparse.Namespace) -> None:
    """Measure, print medians, append rows."""
    facts = {
        "size": options.size,
        "tensors": options.tensors,
        "commit": commit(),
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "load": round(os.getloadavg()[0], 1),
    }
    rows = []
    order = random.Random(0)
    for repeat in range(options.repeats):
        cases = [(system, cold) for system in (*LOADS, "direct") for cold in (True, False)]
        cases += [("memcpy", False), *((system, False) for system in PAGES)]
        for system, cold in order.sample(cases, len(cases)):
            drop_caches(folder) if cold else make_warm(folder)
            time.sleep(options.pause)  # a host takes back what has been free for some seconds
            rows.append(
                {"system": system, "cold": cold, "repeat": repeat, **in_own_process(system, folder)}
            )
    with RESULTS.open("a") as stream:
        stream.writelines(json.dumps({**facts, **row}) + "\n" for row in rows)
    for system, cold in sorted({(row["system"], row["cold"]) for row in rows}):
        mine = [row for row in rows if (row["system"], row["cold"]) == (system, cold)]
        seconds, user, kernel = (
            statistics.median(row[field] for row in mine)
            for field in ("seconds", "user_s", "system_s")
        )
        name = f"{system}, {'cold' if cold else 'warm'}"
        print(f"{name:20} {seconds:.3f} s, CPU {user + kernel:.2f} s, of it kernel {kernel:.2f}")
    print(f"load {facts['load']}")


def main() -> None:
    """Save by both, then load in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1_500_000_000)
    parser.add_argument("--tensors", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pause", type=float, default=4.0, help="seconds before each load")
    parser.add_argument("--one", choices=(*LOADS, *FLOORS, *PAGES))
    parser.add_argument("--dir", type=Path)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.one, options.dir)))
        return
    from lightning.fabric.plugins import TorchCheckpointIO

    from bt_lightning import BTCheckpointIO

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        state = checkpoint(options.size, options.tensors)
        BTCheckpointIO().save_checkpoint(state, folder / "ours")
        TorchCheckpointIO().save_checkpoint(state, folder / "plain.ckpt")
        del state
        run(folder, options)


if __name__ == "__main__":
    main()
