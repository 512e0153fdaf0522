"""The clients of `transfer.py`: each sends files and memory to a store, and fetches an object.

Every client has its best documented setting: parts of 32 MiB, the connections it is given, and
where it has the choice, a payload that is not signed, since that is what costs most.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from client_bare import Bare
from client_ours import Ours
from client_tools import MIB, PART, Bytes, memory_of, preallocated
from servers import KEY, SECRET, Server

if TYPE_CHECKING:
    from collections.abc import Callable


class Client(Protocol):
    """Made before the clock starts; keys are in the bucket that it was made for."""

    def upload(self, source: Bytes, key: str) -> None: ...

    def upload_many(self, folder: Path, names: list[str], prefix: str) -> None: ...

    def download(self, key: str, target: Path, size: int) -> None: ...


class Boto3:
    """s3transfer in threads; no checksum, which only the requests that need one have."""

    def __init__(self, server: Server, bucket: str, connections: int) -> None:
        from boto3.s3.transfer import TransferConfig

        self.client, self.bucket = server.boto3(connections), bucket
        self.connections = connections
        self.config = TransferConfig(
            multipart_threshold=PART,
            multipart_chunksize=PART,
            max_concurrency=connections,
            io_chunksize=MIB,
        )

    def upload(self, source: Bytes, key: str) -> None:
        self.client.upload_file(source.path, self.bucket, key, Config=self.config)

    def upload_many(self, folder: Path, names: list[str], prefix: str) -> None:
        def send(name: str) -> None:
            self.client.put_object(
                Bucket=self.bucket, Key=f"{prefix}/{name}", Body=(folder / name).read_bytes()
            )

        with ThreadPoolExecutor(self.connections) as pool:
            list(pool.map(send, names))

    def download(self, key: str, target: Path, size: int) -> None:
        self.client.download_file(self.bucket, key, str(target), Config=self.config)


class S3fs:
    """fsspec's own, with parts in parallel."""

    def __init__(self, server: Server, bucket: str, connections: int) -> None:
        import s3fs

        self.bucket = bucket
        self.fs = s3fs.S3FileSystem(
            key=KEY,
            secret=SECRET,
            endpoint_url=server.url,
            client_kwargs={"verify": server.certificate or None, "region_name": "us-east-1"},
            config_kwargs={
                "s3": {"payload_signing_enabled": False},
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
                "max_pool_connections": 4 * connections,
            },
            max_concurrency=connections,
            use_listings_cache=False,
        )
        self.fs.connect()

    def upload(self, source: Bytes, key: str) -> None:
        self.fs.put_file(source.path, f"{self.bucket}/{key}", chunksize=PART)

    def upload_many(self, folder: Path, names: list[str], prefix: str) -> None:
        there = [f"{self.bucket}/{prefix}/{name}" for name in names]
        self.fs.put([str(folder / name) for name in names], there)

    def download(self, key: str, target: Path, size: int) -> None:
        self.fs.get_file(f"{self.bucket}/{key}", str(target), chunksize=PART)


class Obstore:
    """CRC64NVME of each part; from memory it is handed the mapping itself, from a file its path."""

    mapped = False

    def __init__(self, server: Server, bucket: str, connections: int) -> None:
        from obstore.store import S3Store

        options: dict[str, object] = {"allow_http": True}
        if server.certificate:
            options["root_certificate"] = Path(server.certificate).read_bytes()
        self.connections = connections
        self.store = S3Store(
            bucket,
            endpoint=server.url,
            access_key_id=KEY,
            secret_access_key=SECRET,
            region="us-east-1",
            virtual_hosted_style_request=False,
            unsigned_payload=True,
            checksum_algorithm="CRC64NVME",
            client_options=options,
        )

    def upload(self, source: Bytes, key: str) -> None:
        import obstore

        mapped = source.in_memory or self.mapped
        data = source.mapping if mapped else Path(source.path)
        obstore.put(self.store, key, data, chunk_size=PART, max_concurrency=self.connections)

    def upload_many(self, folder: Path, names: list[str], prefix: str) -> None:
        import obstore

        with ThreadPoolExecutor(self.connections) as pool:
            list(
                pool.map(
                    lambda name: obstore.put(self.store, f"{prefix}/{name}", folder / name), names
                )
            )

    def download(self, key: str, target: Path, size: int) -> None:
        import obstore

        def fetch(offset: int) -> None:
            length = min(PART, size - offset)
            data = memoryview(obstore.get_range(self.store, key, start=offset, length=length))
            while data:
                count = os.pwrite(descriptor, data, offset)
                data, offset = data[count:], offset + count

        with preallocated(target, size) as descriptor, ThreadPoolExecutor(self.connections) as pool:
            list(pool.map(fetch, range(0, size, PART)))

    def read_range(self, key: str, offset: int, target: memoryview) -> None:
        import obstore

        length = len(target)
        target[:] = memoryview(obstore.get_range(self.store, key, start=offset, length=length))


class ObstoreMapped(Obstore):
    """The same, and a file is mapped and handed over as memory."""

    mapped = True


class S3torchconnector:
    """The AWS common runtime behind it finds its own number of connections."""

    def __init__(self, server: Server, bucket: str, connections: int) -> None:
        from s3torchconnector import S3ClientConfig
        from s3torchconnector._s3client import S3Client

        os.environ.update(AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET)
        config = S3ClientConfig(part_size=PART, force_path_style=True)
        self.bucket, self.connections = bucket, connections
        self.client = S3Client("us-east-1", endpoint=server.url, s3client_config=config)

    def upload(self, source: Bytes, key: str) -> None:
        writer = self.client.put_object(self.bucket, key)
        for offset in range(0, source.size, PART):
            writer.write(source.view[offset : offset + PART])
        writer.close()

    def upload_many(self, folder: Path, names: list[str], prefix: str) -> None:
        def send(name: str) -> None:
            writer = self.client.put_object(self.bucket, f"{prefix}/{name}")
            writer.write((folder / name).read_bytes())
            writer.close()

        with ThreadPoolExecutor(self.connections) as pool:
            list(pool.map(send, names))

    def download(self, key: str, target: Path, size: int) -> None:
        reader = self.client.get_object(self.bucket, key)
        buffer = memoryview(bytearray(8 * MIB))
        with target.open("xb", buffering=0) as file:
            while count := reader.readinto(buffer):
                file.write(buffer[:count])


class S5cmd:
    """The command; its start is in the time."""

    def __init__(self, server: Server, bucket: str, connections: int) -> None:
        self.bucket, self.peak = bucket, 0
        self.words = ["s5cmd", "--log=error", f"--endpoint-url={server.url}"]
        if server.tls:
            self.words.append("--no-verify-ssl")
        self.tuning = ["--part-size=32", f"--concurrency={connections}"]
        secrets = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
        self.environment = {**os.environ, **secrets, "AWS_REGION": "us-east-1"}

    def _run(self, *words: str) -> None:
        process = subprocess.Popen([*self.words, "cp", *self.tuning, *words], env=self.environment)
        while True:
            self.peak = max(self.peak, memory_of(process.pid, "VmHWM"))
            with contextlib.suppress(subprocess.TimeoutExpired):
                if process.wait(0.01):
                    msg = f"s5cmd ended with {process.returncode}"
                    raise ChildProcessError(msg)
                return

    def upload(self, source: Bytes, key: str) -> None:
        self._run(source.path, f"s3://{self.bucket}/{key}")

    def upload_many(self, folder: Path, names: list[str], prefix: str) -> None:
        self._run(f"{folder}/part-*", f"s3://{self.bucket}/{prefix}/")

    def download(self, key: str, target: Path, size: int) -> None:
        self._run(f"s3://{self.bucket}/{key}", str(target))


CLIENTS: dict[str, Callable[[Server, str, int], Client]] = {
    "http": Bare,
    "ours": Ours,
    "obstore": Obstore,
    "obstore-mmap": ObstoreMapped,
    "boto3": Boto3,
    "s3fs": S3fs,
    "s5cmd": S5cmd,
    "s3torchconnector": S3torchconnector,
}
