"""One transfer of `transfer.py`, in a process of its own; prints one JSON line.

Its argument is JSON; the process inherits the descriptor of what it sends from memory. The time is
that of the transfer alone: imports, connecting and digests that a commit has made come before.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from client_ours import Ours
from client_ranges import load_ranges
from client_tools import MADV_POPULATE_WRITE, Bytes, memory_of
from clients import CLIENTS, S5cmd
from servers import Server
from typing_extensions import Self

if TYPE_CHECKING:
    from collections.abc import Callable


PAUSE_S = 2.5
"""Linux hands free memory over 2 s after some became free; then it begins to count anew."""


class Clock:
    """Wall and CPU seconds of what runs inside, and the memory it took beyond what was there."""

    def __enter__(self) -> Self:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
        self.before = memory_of("self", "VmRSS")
        self.cpu = _cpu()
        self.started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.started
        self.cpu = _cpu() - self.cpu
        self.peak = memory_of("self", "VmHWM") - self.before


def _cpu() -> float:
    """User and system, with that of children that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def touch(size: int) -> None:
    """Use so much memory, and give it back: the next to use it shall not pay for another's pause.

    A virtual machine may hand memory that was free for a while to its host, and gets it back page
    by page, at ten times the price of memory that is there; by chance, one client and not another.
    """
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)  # what such a machine hands to its host are huge pages
        memory.madvise(MADV_POPULATE_WRITE)
        time.sleep(PAUSE_S)


def make(spec: dict[str, object], name: str) -> object:
    return CLIENTS[name](Server(**spec["server"]), spec["bucket"], spec["connections"])


def upload(spec: dict[str, object], client: object) -> Clock:
    in_memory = spec["descriptor"] is not None
    descriptor = spec["descriptor"] if in_memory else os.open(spec["path"], os.O_RDONLY)
    source = Bytes(spec["path"], descriptor, spec["size"], in_memory=in_memory)
    if in_memory:
        assert source.view  # so that it is no memory of the transfer's
    words = {}
    if isinstance(client, Ours):
        client.prepare(source)
        words = {"reuse": spec.get("reuse")}
    with Clock() as clock:
        client.upload(source, spec["key"], **words)
    return clock


def upload_many(spec: dict[str, object], client: object) -> Clock:
    with Clock() as clock:
        client.upload_many(Path(spec["path"]), spec["names"], spec["key"])
    return clock


def download(spec: dict[str, object], client: object) -> Clock:
    target = Path(spec["path"])
    with Clock() as clock:
        client.download(spec["key"], target, spec["size"])
        with target.open("rb") as file:
            os.fsync(file.fileno())
    return clock


def load(spec: dict[str, object], how: Callable[[], dict[str, object]]) -> tuple[Clock, str]:
    """Store to tensors of which every page was touched; and the digest of all of them."""
    import torch
    import xxhash

    with Clock() as clock:
        tensors = how()
        for tensor in tensors.values():
            tensor.view(-1).view(torch.uint8)[:: mmap.PAGESIZE].sum()
    hasher = xxhash.xxh3_128()
    for name in sorted(tensors):
        hasher.update(memoryview(tensors[name].numpy()).cast("B"))
    return clock, hasher.hexdigest()


def loader(spec: dict[str, object]) -> tuple[Callable[[], dict[str, object]], object]:
    """What makes the tensors, and the client behind it if it is one of ours here."""
    import torch

    torch.set_num_threads(1)
    base, folder, size = spec["key"], Path(spec["path"]), spec["size"]
    client, _, form = spec["client"].partition("+")
    url = f"s3://{spec['bucket']}/{base}"
    if client == "ours":
        from bt_lightning import BTCheckpointIO

        return lambda: BTCheckpointIO().load_checkpoint(f"{url}/checkpoint")["state_dict"], None
    if client == "lightning":
        import s3fs  # noqa: F401
        from lightning.fabric.plugins import TorchCheckpointIO

        return lambda: TorchCheckpointIO().load_checkpoint(f"{url}/state.pt")["state_dict"], None
    made = make(spec, client)
    if form == "ranges":
        return lambda: load_ranges(made, f"{base}/state.safetensors"), made
    if form == "safetensors":
        from safetensors.torch import load_file

        def safe() -> dict[str, object]:
            made.download(f"{base}/state.safetensors", folder / "state", size[form])
            return load_file(folder / "state")

        return safe, made

    def pickled() -> dict[str, object]:
        made.download(f"{base}/state.pt", folder / "state", size[form])
        return torch.load(folder / "state", mmap=True, weights_only=True)["state_dict"]

    return pickled, made


def main() -> None:
    spec = json.loads(sys.argv[1])
    digest = None
    if spec["do"] == "load":
        how, client = loader(spec)
        touch(2 * spec["bytes"])
        clock, digest = load(spec, how)
    else:
        client = make(spec, spec["client"])
        touch(2 * spec["bytes"])
        act = {"upload": upload, "many": upload_many, "download": download}[spec["do"]]
        clock = act(spec, client)
    peak = clock.peak + (client.peak if isinstance(client, S5cmd) else 0)
    facts = {"seconds": clock.seconds, "cpu_s": clock.cpu, "peak": peak, "digest": digest}
    print(json.dumps(facts), flush=True)
    with contextlib.suppress(OSError):
        shutil.rmtree(Path(spec["path"]) / "fetched")
    os._exit(0)  # a client's threads are not what is measured


if __name__ == "__main__":
    main()
