"""How fast checkpoints reach a store and come back, next to the other clients, on one machine.

Each transfer is a process of its own (`transfer_run.py`); clients are interleaved, each repeat in
another order; content is compared with what was sent; the raw rows are appended to
`benchmarks/results/transfer.jsonl`. Run it with `nox -s bench`; a case by itself with
`python benchmarks/transfer.py --case memory-1g`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import workload
from servers import KEPT, KINDS, THROWN, Server, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RESULTS = Path(__file__).with_name("results") / "transfer.jsonl"
RUN = Path(__file__).with_name("transfer_run.py")
GB = 10**9
LABELS = {
    "http": "HTTP alone (the floor)",
    "ours": "bt_lightning",
    "obstore": "obstore",
    "obstore-mmap": "obstore, handed an mmap",
    "boto3": "boto3",
    "s3fs": "s3fs",
    "s5cmd": "s5cmd",
    "s3torchconnector": "s3torchconnector",
    "lightning": "Lightning (fsspec, torch.load)",
    "boto3+safetensors": "boto3, then safetensors",
    "boto3+torch": "boto3, then torch.load(mmap)",
    "s5cmd+safetensors": "s5cmd, then safetensors",
    "http+ranges": "HTTP alone, ranges into tensors",
    "obstore+ranges": "obstore, ranges copied into tensors",
}
SENDERS = ["http", "ours", "obstore", "boto3", "s3fs", "s5cmd", "s3torchconnector"]
FASTEST = ["http", "ours", "obstore", "boto3", "s5cmd"]
FETCHERS = ["http", "ours", "obstore", "boto3", "s3fs", "s5cmd", "s3torchconnector"]
LOADERS = ["ours", "lightning", "boto3+safetensors", "boto3+torch", "s5cmd+safetensors"]
TLS_LOADERS = ["http+ranges", "ours", "obstore+ranges", "boto3+safetensors"]


@dataclass(frozen=True)
class Case:
    """What is moved, how, between whom."""

    title: str
    do: str
    """upload, many, increment, download or load."""
    size: int
    clients: list[str]
    server: str = "sink"
    in_memory: bool = False
    connections: int = 8
    default: bool = True
    """Whether it runs when no case is named."""


CASES = {
    "memory-1g": Case("upload of 1 GB from memory", "upload", GB, SENDERS, in_memory=True),
    "memory-4g": Case("upload of 4 GB from memory", "upload", 4 * GB, FASTEST, in_memory=True),
    "file-1g": Case("upload of 1 GB from a file", "upload", GB, [*SENDERS, "obstore-mmap"]),
    "file-4g": Case("upload of 4 GB from a file", "upload", 4 * GB, FASTEST, default=False),
    "tls-1g": Case("upload of 1 GB, TLS", "upload", GB, FASTEST, "sink-tls", in_memory=True),
    "far-1g": Case(
        "upload of 1 GB, 40 ms a request, 100 MB/s a connection",
        "upload",
        GB,
        FASTEST,
        "sink-far",
        in_memory=True,
        connections=16,
    ),
    "small": Case("upload of 200 files of 1 MiB", "many", 200 * 2**20, SENDERS, connections=16),
    "increment": Case(
        "1.5 GB of which 1% changed", "increment", 3 * GB // 2, FASTEST, in_memory=True
    ),
    "down-1g": Case("download of 1 GB to a durable file", "download", GB, FETCHERS),
    "down-4g": Case(
        "download of 4 GB to a durable file", "download", 4 * GB, ["http", "ours", "boto3", "s5cmd"]
    ),
    "down-tls-1g": Case(
        "download of 1 GB, TLS", "download", GB, FASTEST, "sink-tls", default=False
    ),
    "load": Case("store to tensors, 1.5 GB in 80", "load", 3 * GB // 2, LOADERS),
    "load-tls": Case(
        "store to tensors, 0.5 GB in 80, TLS", "load", GB // 2, TLS_LOADERS, "sink-tls"
    ),
    "juicefs-up": Case(
        "upload of 1 GB to JuiceFS", "upload", GB, SENDERS, "juicefs", in_memory=True
    ),
    "juicefs-down": Case("download of 1 GB from JuiceFS", "download", GB, FASTEST, "juicefs"),
    "seaweedfs-up": Case(
        "upload of 1 GB to SeaweedFS",
        "upload",
        GB,
        FASTEST,
        "seaweedfs",
        in_memory=True,
        default=False,
    ),
}


@dataclass
class Prepared:
    """What the runs of one case share."""

    spec: dict[str, object]
    verify: Callable[..., bool | None]
    """Given the facts of a run, and whether to look at all bytes at any price."""
    descriptor: int | None = None


def run(case: Case, client: str, server: Server, prepared: Prepared) -> dict[str, object]:
    """One transfer, from a disk that has nothing left to write."""
    os.sync()
    spec = {
        "client": client,
        "server": asdict(server),
        "connections": case.connections,
        "bytes": case.size,
        "descriptor": prepared.descriptor,
        **prepared.spec,
    }
    inherited = [] if prepared.descriptor is None else [prepared.descriptor]
    done = subprocess.run(
        [sys.executable, str(RUN), json.dumps(spec)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        pass_fds=inherited,
        env={**os.environ, **server.environment()},
    )
    if done.returncode:
        sys.exit(f"{client} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def prepare_upload(
    case: Case, server: Server, folder: Path, closing: contextlib.ExitStack
) -> Prepared:
    arena = closing.enter_context(workload.arena(case.size))
    spec = {"do": "upload", "bucket": THROWN, "key": "up/data", "size": case.size}
    if case.do == "increment":
        spec |= {"bucket": KEPT, "key": "up/data"}
        server.boto3().upload_file(arena.path, KEPT, "base/data")
        spec["reuse"] = ["base/data", arena.change()]
    if case.in_memory:
        spec["path"] = arena.path
    else:
        spec["path"] = str(folder / "data")
        arena.write(folder / "data")

    place = f"{spec['bucket']}/{spec['key']}"

    def verify(_: dict[str, object], *, thorough: bool) -> bool | None:
        return workload.arrived(server, place, arena, (0, case.size), thorough=thorough)

    return Prepared(spec, verify, arena.descriptor if case.in_memory else None)


def prepare_many(
    case: Case, server: Server, folder: Path, closing: contextlib.ExitStack
) -> Prepared:
    arena = closing.enter_context(workload.arena(case.size))
    names = workload.small_files(arena, folder / "small", case.size // 2**20)
    spec = {"do": "many", "bucket": THROWN, "key": "many", "path": str(folder / "small")}

    def verify(_: dict[str, object], *, thorough: bool) -> bool | None:
        return workload.all_arrived(server, f"{THROWN}/many", arena, names, thorough=thorough)

    return Prepared({**spec, "names": names, "size": case.size}, verify)


def prepare_download(
    case: Case, server: Server, folder: Path, closing: contextlib.ExitStack
) -> Prepared:
    arena = closing.enter_context(workload.arena(case.size))
    workload.put_checkpoint(server, KEPT, "down", arena)
    target = folder / "fetched-data"
    spec = {"do": "download", "bucket": KEPT, "key": "down/checkpoint/data", "size": case.size}
    expected = arena.digest(0, case.size)
    closing.callback(target.unlink, missing_ok=True)

    def verify(_: dict[str, object], *, thorough: bool) -> bool:
        found = workload.digest_of(target)
        target.unlink()
        return found == expected

    return Prepared({**spec, "path": str(target)}, verify)


def prepare_load(
    case: Case, server: Server, folder: Path, closing: contextlib.ExitStack
) -> Prepared:
    sizes, digest = workload.put_states(server, KEPT, "load", case.size, folder)
    target = folder / "loaded"

    def verify(facts: dict[str, object], *, thorough: bool) -> bool:
        shutil.rmtree(target)
        target.mkdir()
        return facts["digest"] == digest

    target.mkdir()
    closing.callback(shutil.rmtree, target, ignore_errors=True)
    spec = {"do": "load", "bucket": KEPT, "key": "load", "size": sizes, "path": str(target)}
    return Prepared(spec, verify)


PREPARE = {
    "upload": prepare_upload,
    "increment": prepare_upload,
    "many": prepare_many,
    "download": prepare_download,
    "load": prepare_load,
}


def received(server: Server) -> int | None:
    """Bytes of bodies that a sink has taken so far."""
    return workload.ask(server, "received") if server.is_sink else None


def measure(
    name: str, case: Case, repeats: int, server: Server, folder: Path
) -> Iterator[dict[str, object]]:
    """The rows of one case, as they come."""
    with contextlib.ExitStack() as closing:
        prepared = PREPARE[case.do](case, server, folder, closing)
        for repeat in range(repeats):
            for client in random.sample(case.clients, len(case.clients)):
                workload.clear(server, ("up/", "many/"))
                before = received(server)
                facts = run(case, client, server, prepared)
                row = {
                    "case": name,
                    "client": client,
                    "server": case.server,
                    "tls": server.tls,
                    "latency_s": server.latency,
                    "cap": server.cap,
                    "connections": case.connections,
                    "repeat": repeat,
                    "load": round(os.getloadavg()[0], 1),
                    "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                    "size": case.size,
                    "seconds": facts["seconds"],
                    "mb_s": case.size / facts["seconds"] / 1e6,
                    "cpu_s_gb": facts["cpu_s"] / case.size * 1e9,
                    "peak": facts["peak"],
                    "sent": None if before is None else received(server) - before,
                    "verified": prepared.verify(facts, thorough=repeat == 0),
                }
                if row["verified"] is False:
                    sys.exit(f"{name}: what {client} moved is not what was there")
                yield row
    workload.clear(server, ("",))
    for left in folder.iterdir():
        if left.is_file():
            left.unlink()
        elif left.name not in KINDS:
            shutil.rmtree(left)


def summary(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """One line a client, of the rows of one case: medians."""
    lines = []
    for client in LABELS:
        mine = [row for row in rows if row["client"] == client]
        if mine:
            columns = ("mb_s", "seconds", "cpu_s_gb", "peak", "sent")
            values = {
                column: statistics.median(row[column] for row in mine)
                for column in columns
                if mine[0][column] is not None
            }
            lines.append({"client": client, "repeats": len(mine), **values})
    return sorted(lines, key=lambda line: -line["mb_s"])


def report(name: str, rows: list[dict[str, object]]) -> None:
    """The Markdown table of one case."""
    lines = summary(rows)
    repeats = min(line["repeats"] for line in lines)
    print(f"\n### {CASES[name].title}\n\n`{name}`, server {CASES[name].server},", end=" ")
    print(f"medians of {repeats} repeats.\n")
    print("| | MB/s | s | CPU s/GB | memory, MB | sent, MB |\n|---|---|---|---|---|---|")
    for line in lines:
        sent = f"{line['sent'] / 1e6:,.0f}" if line.get("sent") else ""
        print(
            f"| {LABELS[line['client']]} | {line['mb_s']:,.0f} | {line['seconds']:.2f}"
            f" | {line['cpu_s_gb']:.2f} | {line['peak'] / 1e6:,.0f} | {sent} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=list(CASES), action="append")
    parser.add_argument("--client", choices=list(LABELS), action="append")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tenth of the bytes, once")
    parser.add_argument("--dir", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of the raw rows")
    options = parser.parse_args()
    options.results.parent.mkdir(exist_ok=True)
    started = time.monotonic()
    wanted = options.case or [name for name, case in CASES.items() if case.default]
    wanted.sort(key=lambda name: CASES[name].server)  # each server is started once
    shown = []
    with tempfile.TemporaryDirectory(dir=options.dir) as place, contextlib.ExitStack() as servers:
        folder, server = Path(place), None
        for name in wanted:
            case = CASES[name]
            if options.client:
                case = replace(case, clients=[c for c in case.clients if c in options.client])
            if options.quick:
                case = replace(case, size=case.size // 10)
            if server is None or server.name != case.server:
                servers.close()
                server = servers.enter_context(start(case.server, folder))
            repeats = 1 if options.quick else options.repeats
            rows = []
            for row in measure(name, case, repeats, server, folder):
                rows.append(row)
                print(f"{name} {row['repeat']} {row['client']}: {row['mb_s']:.0f} MB/s", flush=True)
                with options.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            shown.append((name, rows))
    for name, rows in shown:
        report(name, rows)
    print(
        f"\n{time.monotonic() - started:.0f} s in all; raw rows: {options.results}", file=sys.stderr
    )


if __name__ == "__main__":
    main()
