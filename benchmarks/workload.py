"""What `transfer.py` moves, and how it is told whether it arrived."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import ssl
import urllib.request
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import xxhash
from client_tools import MADV_POPULATE_WRITE

from bt_lightning.file_entries import BLOCK_BYTES, FileEntry
from bt_lightning.localdir.digest import Hasher, digest_file
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from servers import Server

MIB = 1024 * 1024
PAGE = mmap.PAGESIZE


class Arena:
    """Bytes in a memfd that no compression and no deduplication makes less."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.descriptor = os.memfd_create("benchmark")
        self.path = f"/proc/{os.getpid()}/fd/{self.descriptor}"
        random = bytearray(os.urandom(16 * MIB))
        for start in range(0, size, len(random)):
            for page in range(0, len(random), PAGE):
                random[page : page + 8] = (start + page).to_bytes(8, "little")
            os.write(self.descriptor, random[: size - start])
        self.mapping = mmap.mmap(self.descriptor, size)
        self.view = memoryview(self.mapping)
        self.digests: dict[tuple[int, int], str] = {}

    def digest(self, offset: int, size: int) -> str:
        """XXH3-128 of a range, each computed once."""
        found = self.digests.get((offset, size))
        if found is None:
            found = xxhash.xxh3_128_hexdigest(self.view[offset : offset + size])
            self.digests[offset, size] = found
        return found

    def change(self) -> list[tuple[int, int]]:
        """Change 1% in one piece, as adapters lie; return (offset, size) of the blocks left."""
        begin, size = self.size * 7 // 10, self.size // 100
        self.view[begin : begin + size] = os.urandom(size)
        self.digests.clear()
        first = begin // BLOCK_BYTES * BLOCK_BYTES
        last = -(-(begin + size) // BLOCK_BYTES) * BLOCK_BYTES
        return [(0, first), (last, self.size - last)]

    def write(self, path: Path) -> None:
        with contextlib.suppress(OSError):  # a write from pages that are not there comes in crumbs
            self.mapping.madvise(MADV_POPULATE_WRITE)
        with path.open("xb", buffering=0) as file:
            view = self.view
            while view:
                view = view[file.write(view[: 16 * MIB]) :]
            os.fsync(file.fileno())

    def entry(self, path: str) -> FileEntry:
        hasher = Hasher()
        hasher.update(self.view)
        return hasher.entry(path)


@contextlib.contextmanager
def arena(size: int) -> Iterator[Arena]:
    made = Arena(size)
    try:
        yield made
    finally:
        made.view.release()
        made.mapping.close()
        os.close(made.descriptor)


def small_files(source: Arena, folder: Path, count: int) -> list[str]:
    """A committed checkpoint of `count` files of 1 MiB; their names in order."""
    folder.mkdir()
    names = [f"part-{number:03}" for number in range(count)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(source.view[number * MIB : (number + 1) * MIB])
    entries = tuple(digest_file(folder / name, name) for name in names)
    (folder / MANIFEST).write_bytes(manifest(entries).to_bytes())
    return names


def manifest(entries: tuple[FileEntry, ...]) -> Manifest:
    now = datetime.now(timezone.utc).isoformat()
    return Manifest(
        checkpoint_id="checkpoint", generation=1, step=0, epoch=0, created_at=now, files=entries
    )


def put_checkpoint(server: Server, bucket: str, prefix: str, source: Arena) -> None:
    """A committed checkpoint of one file, `data`."""
    base = f"{prefix}/checkpoint"
    client = server.boto3()
    client.upload_file(source.path, bucket, f"{base}/data")
    data = manifest((source.entry("data"),)).to_bytes()
    client.put_object(Bucket=bucket, Key=f"{base}/{MANIFEST}", Body=data)


def put_states(
    server: Server, bucket: str, prefix: str, size: int, folder: Path
) -> tuple[dict[str, int], str]:
    """The same 80 tensors in each form; the size of each, and the digest of the tensors."""
    import torch
    from safetensors.torch import save_file

    from bt_lightning import BTCheckpointIO

    each = size // 80 // 4
    tensors = {f"layer.{i:02}.weight": torch.randn(each) for i in range(80)}
    hasher = xxhash.xxh3_128()
    for name in sorted(tensors):
        hasher.update(memoryview(tensors[name].numpy()).cast("B"))
    state = {"state_dict": tensors, "global_step": 1, "epoch": 0}
    BTCheckpointIO().save_checkpoint(state, folder / "checkpoint")
    save_file(tensors, folder / "state.safetensors")
    torch.save(state, folder / "state.pt")
    client = server.boto3()
    for path in (*(folder / "checkpoint").rglob("*"), *folder.glob("state.*")):
        if path.is_file():
            key = f"{prefix}/{path.relative_to(folder).as_posix()}"
            client.upload_file(str(path), bucket, key)
    sizes = {
        form: (folder / name).stat().st_size
        for form, name in (("safetensors", "state.safetensors"), ("torch", "state.pt"))
    }
    return sizes, hasher.hexdigest()


def ask(server: Server, what: str) -> object:
    """A question to a sink."""
    context = ssl.create_default_context(cafile=server.certificate) if server.tls else None
    with urllib.request.urlopen(f"{server.url}/-/{what}", context=context) as answer:
        return json.load(answer)


def arrived(
    server: Server, place: str, source: Arena, wanted: tuple[int, int], *, thorough: bool
) -> bool | None:
    """Whether the object at `place` (bucket/key) is `wanted` (offset, size) of `source`.

    A sink knows the digest of each part. A real server has to send everything back, which is done
    only if `thorough`; otherwise nobody looks, and the answer is None.
    """
    offset, size = wanted
    if server.is_sink:
        done = 0
        for length, digest in ask(server, f"object/{place}"):
            if digest != source.digest(offset + done, length):
                return False
            done += length
        return done == size
    if not thorough:
        return None
    bucket, _, key = place.partition("/")
    body = server.boto3().get_object(Bucket=bucket, Key=key)["Body"]
    hasher = xxhash.xxh3_128()
    for piece in body.iter_chunks(MIB):
        hasher.update(piece)
    return hasher.hexdigest() == source.digest(offset, size)


def all_arrived(
    server: Server, place: str, source: Arena, names: list[str], *, thorough: bool
) -> bool | None:
    """The same for files of 1 MiB under `place`, where `bt_lightning` adds a folder."""
    bucket, _, prefix = place.partition("/")
    listed = server.boto3().list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/")
    keys = {item["Key"].rpartition("/")[2]: item["Key"] for item in listed["Contents"]}
    found = [
        arrived(server, f"{bucket}/{keys[name]}", source, (number * MIB, MIB), thorough=thorough)
        for number, name in enumerate(names)
        if name in keys
    ]
    return len(found) == len(names) and (None if None in found else all(found))


def clear(server: Server, prefixes: tuple[str, ...]) -> None:
    """Delete what uploads made."""
    client = server.boto3()
    for bucket in ("kept", "thrown"):
        for prefix in prefixes:
            listed = client.list_objects_v2(Bucket=bucket, Prefix=prefix)
            for item in listed.get("Contents", ()):
                client.delete_object(Bucket=bucket, Key=item["Key"])


def digest_of(path: Path) -> str:
    hasher, buffer = xxhash.xxh3_128(), memoryview(bytearray(MIB))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
    return hasher.hexdigest()
