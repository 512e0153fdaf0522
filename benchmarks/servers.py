"""The S3 servers of `transfer.py`, each a process of its own on this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from certificate import certify

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY, SECRET = "benchmark", "benchmark-secret"
KEPT, THROWN = "kept", "thrown"
"""Buckets: what is in the second one may be forgotten as soon as it is complete."""
START_S = 60


@dataclass(frozen=True)
class Server:
    """Where a server is; what a client needs to use it."""

    name: str
    url: str
    tls: bool = False
    latency: float = 0.0
    cap: float = 0.0
    certificate: str = ""
    """File of the certificate that a client has to trust; empty without TLS."""

    @property
    def is_sink(self) -> bool:
        return self.name.startswith("sink")

    def environment(self) -> dict[str, str]:
        """Variables of a client's process: none of its libraries may find another place to ask."""
        found = {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_EC2_METADATA_DISABLED": "true",
            "FSSPEC_S3_KEY": KEY,
            "FSSPEC_S3_SECRET": SECRET,
            "FSSPEC_S3_ENDPOINT_URL": self.url,
        }
        return {**found, "AWS_CA_BUNDLE": self.certificate} if self.certificate else found

    def boto3(self, connections: int = 10) -> object:
        """A client without what costs most: a signed payload, and checksums nobody asked for."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
            verify=self.certificate or None,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path", "payload_signing_enabled": False},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                max_pool_connections=connections,
            ),
        )


@contextlib.contextmanager
def sink(
    folder: Path, name: str, *, tls: bool = False, latency: float = 0.0, cap: float = 0.0
) -> Iterator[Server]:
    """`sink.py`; it ends with its input, so it does not outlive this process."""
    words = [sys.executable, str(Path(__file__).with_name("sink.py"))]
    words += [f"--latency={latency}", f"--cap={cap}"]
    trusted = ""
    if tls:
        words.append(f"--certificate={certify(folder)}")
        trusted = str(folder / "trusted.pem")
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        port = int(process.stdout.readline())
        url = f"http{'s' if tls else ''}://127.0.0.1:{port}"
        try:
            yield Server(name, url, tls, latency, cap, trusted)
        finally:
            process.stdin.close()


@contextlib.contextmanager
def juicefs(folder: Path, name: str) -> Iterator[Server]:
    """The gateway of JuiceFS over a folder: MinIO's front, and real files behind it."""
    port, meta = _free_port(), f"sqlite3://{folder}/meta.db"
    subprocess.run(
        [
            "juicefs",
            "format",
            "--storage=file",
            "--trash-days=0",
            f"--bucket={folder}/blocks/",
            meta,
            "bench",
        ],
        check=True,
        capture_output=True,
    )
    words = ["juicefs", "gateway", meta, f"127.0.0.1:{port}", "--multi-buckets", "--keep-etag"]
    words += ["--object-meta", "--no-usage-report", f"--cache-dir={folder}/cache"]
    secrets = {"MINIO_ROOT_USER": KEY, "MINIO_ROOT_PASSWORD": SECRET}
    with _process(words, secrets, folder):
        yield _ready(Server(name, f"http://127.0.0.1:{port}"))


@contextlib.contextmanager
def seaweedfs(folder: Path, name: str) -> Iterator[Server]:
    port = _free_port()
    words = ["weed", "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    words += [f"-s3.port={port}", "-admin.ui=false"]
    secrets = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    with _process(words, secrets, folder):
        yield _ready(Server(name, f"http://127.0.0.1:{port}"))


@contextlib.contextmanager
def start(name: str, folder: Path) -> Iterator[Server]:
    """One of `KINDS`, with its buckets."""
    kind, options = KINDS[name]
    place = folder / name
    place.mkdir()
    try:
        with kind(place, name, **options) as server:
            for bucket in (KEPT, THROWN):
                server.boto3().create_bucket(Bucket=bucket)
            yield server
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def _process(words: list[str], secrets: dict[str, str], folder: Path) -> Iterator[None]:
    """A server in a process group of its own, ended with all it started."""
    environment = {**os.environ, **secrets}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            words,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _ready(server: Server) -> Server:
    deadline = time.monotonic() + START_S
    while True:
        try:
            server.boto3().list_buckets()
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return server


def _free_port() -> int:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        return int(holder.getsockname()[1])


KINDS = {
    "sink": (sink, {}),
    "sink-tls": (sink, {"tls": True}),
    "sink-far": (sink, {"latency": 0.04, "cap": 100e6}),
    "juicefs": (juicefs, {}),
    "seaweedfs": (seaweedfs, {}),
}
"""Name -> how it starts, its options. `far` waits 40 ms a request and gives each connection 100
MB/s, about what one connection to S3 gets."""
