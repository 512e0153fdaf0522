"""How long it takes to see what a store holds: lists and the explorer, next to boto3 alone.

A real S3 server on loopback holds 200 jobs of 50 checkpoints. Each command is a process of its own,
as users start it: `cold` has no cache of manifests, `warm` the one that the run before left. Each
job has the index that its worker would leave, unless `--without-indexes`. boto3 lists the same
prefix and reads the same manifests on 16 threads, in a fresh process too. Another checkout, named
by `--before`, is measured in the same rounds. Repeats are interleaved; rows are appended to
benchmarks/results/catalog.jsonl.

    python benchmarks/catalog.py --repeats 5
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import select
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from servers import KEPT, Server, start

from bt_lightning.localdir.digest import Hasher
from bt_lightning.manifest import Manifest
from bt_lightning.manifest_index import index_bytes
from bt_lightning.path_layout import job_prefix, manifests_index

JOBS, CHECKPOINTS = 200, 50
RESULTS = Path(__file__).with_name("results") / "catalog.jsonl"
COMMAND = [sys.executable, "-m", "bt_lightning", "checkpoints"]
RIVAL = """
import boto3, os, sys
from concurrent.futures import ThreadPoolExecutor
from botocore.config import Config
s3 = boto3.client("s3", config=Config(s3={"addressing_style": "path"}, max_pool_connections=16))
pages = s3.get_paginator("list_objects_v2").paginate(Bucket=sys.argv[1], Prefix=sys.argv[2] + "/")
keys = [o["Key"] for p in pages for o in p["Contents"] if o["Key"].endswith("/bt_manifest.json")]
with ThreadPoolExecutor(16) as pool:
    data = list(pool.map(lambda k: s3.get_object(Bucket=sys.argv[1], Key=k)["Body"].read(), keys))
print(len(data))
"""


def fill(server: Server, *, indexes: bool) -> None:
    """Put every checkpoint: a manifest of three files, and those files, of a byte each."""
    client = server.boto3(32)
    manifests: list[dict[str, Manifest]] = [{} for _ in range(JOBS)]

    def put(number: int) -> None:
        job, step = divmod(number, CHECKPOINTS)
        prefix = f"{job_prefix('demo', f'job-{job:03}', 0)}/checkpoint-{step}"
        hasher = Hasher()
        hasher.update(b"x")
        names = ("model.safetensors", "optimizer.safetensors", "trainer.json")
        manifest = Manifest(
            checkpoint_id=f"checkpoint-{step}",
            generation=1,
            step=step,
            epoch=0,
            created_at=f"2026-01-{1 + job // 24:02}T{job % 24:02}:{step:02}:00+00:00",
            files=tuple(hasher.entry(name) for name in names),
            metrics={"val_loss": 1 / (step + 1)},
        )
        for name in names:
            client.put_object(Bucket=KEPT, Key=f"{prefix}/{name}", Body=b"x")
        data = manifest.to_bytes()
        client.put_object(Bucket=KEPT, Key=f"{prefix}/bt_manifest.json", Body=data)
        manifests[job][f"checkpoint-{step}"] = manifest

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(put, range(JOBS * CHECKPOINTS)))
    for job, own in enumerate(manifests if indexes else ()):
        key = manifests_index(job_prefix("demo", f"job-{job:03}", 0))
        client.put_object(Bucket=KEPT, Key=key, Body=index_bytes(own))


def timed(words: list[str], environment: dict[str, str], place: Path) -> dict[str, float]:
    """Seconds of a process in the folder `place`, and the most memory it had."""
    began = time.perf_counter()
    with subprocess.Popen(words, env=environment, cwd=place, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        shown = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, words
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1000,
        "bytes_shown": len(shown),
        "load": os.getloadavg()[0],
    }


def painted(words: list[str], environment: dict[str, str], place: Path) -> dict[str, float]:
    """Seconds to the explorer's first screen, and to its first checkpoint, on a real terminal."""
    began = time.perf_counter()
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(place)
        os.execvpe(words[0], words, {**environment, "TERM": "xterm-256color"})
    seen, first, listed = b"", 0.0, 0.0
    while not listed:
        assert select.select([terminal], [], [], 60)[0], seen[-300:]
        seen += os.read(terminal, 65536)
        first = first or (time.perf_counter() - began if b"Checkpoints" in seen else 0.0)
        listed = time.perf_counter() - began if b"checkpoint-49" in seen else 0.0
    peak = next(
        float(line.split()[1]) / 1000
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    os.write(terminal, b"\x03")
    os.waitpid(pid, 0)
    os.close(terminal)
    return {"seconds": listed, "first_paint_s": first, "peak_mb": peak}


def main() -> None:
    """Measure, print medians, append rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--without-indexes", action="store_true", help="as older workers leave it")
    parser.add_argument("--before", type=Path, help="another checkout, measured beside this one")
    parser.add_argument("--without-rival", action="store_true", help="boto3 is not measured")
    parser.add_argument("--case", nargs="*", help="only these")
    asked = parser.parse_args()
    repeats = asked.repeats
    checkouts = {"": Path(__file__).resolve().parents[1]}
    if asked.before is not None:
        checkouts = {"before, ": asked.before.resolve(), **checkouts}
    rows = []
    with tempfile.TemporaryDirectory() as name, start("seaweedfs", Path(name)) as server:
        fill(server, indexes=not asked.without_indexes)
        known = {k: v for k, v in server.environment().items() if not k.startswith("FSSPEC_")}
        base = {**os.environ, **known, "BT_STORE_URL": f"s3://{KEPT}"}
        one = ["--project", "demo", "--job-id", "job-100"]
        prefix = job_prefix("demo", "job-100", 0).rpartition("/")[0]
        cases = {
            "one job": ([*COMMAND, "list", *one], prefix, timed),
            "all jobs": (
                [*COMMAND, "list", "--all-jobs", "-o", "json"],
                "training_projects",
                timed,
            ),
            "explorer": ([*COMMAND, "explore", *one], prefix, painted),
        }
        cases = {case: cases[case] for case in asked.case or cases}
        state = {"index": not asked.without_indexes}
        for repeat in range(repeats):
            for case, (words, place, measure) in cases.items():
                for before, checkout in checkouts.items():
                    cache = Path(name) / f"cache-{repeat}-{case}-{before}"
                    own = {**base, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(checkout)}
                    for heat in ("cold", "warm"):
                        row = {"case": case, "system": f"{before}{heat}", "repeat": repeat}
                        rows.append({**row, **state, **measure(words, own, checkout)})
                if not asked.without_rival:
                    rival = [sys.executable, "-c", RIVAL, KEPT, place]
                    row = {"case": case, "system": "boto3", "repeat": repeat}
                    rows.append({**row, **state, **timed(rival, base, Path(name))})
            with RESULTS.open("a") as stream:
                new = [row for row in rows if row["repeat"] == repeat]
                stream.writelines(json.dumps(row) + "\n" for row in new)
    for case in cases:
        for system in dict.fromkeys(row["system"] for row in rows):
            own = [row for row in rows if (row["case"], row["system"]) == (case, system)]
            figures = {
                field: statistics.median(row[field] for row in own)
                for field in ("seconds", "cpu_s", "first_paint_s", "peak_mb", "load")
                if field in own[0]
            }
            print(case, system, {field: round(value, 3) for field, value in figures.items()})


if __name__ == "__main__":
    main()
