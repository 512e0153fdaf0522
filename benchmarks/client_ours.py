"""bt_lightning as a client of `transfer.py`, through the same calls as its worker."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from servers import KEY, SECRET, Server

from bt_lightning.localdir.digest import Hasher, digest_file
from bt_lightning.localdir.list_and_verify_checkpoints import LocalCheckpoint, read_manifest
from bt_lightning.store.interface import Reuse
from bt_lightning.store.open_store import open_store
from bt_lightning.store.transfer.fetch_to_disk import fetch
from bt_lightning.store.transfer.file_source import FileSource
from bt_lightning.store.transfer.publish import publish
from bt_lightning.worker.early_upload import LentSource

if TYPE_CHECKING:
    from client_tools import Bytes


class Ours:
    """What the worker does: verified sources, and a fetch that is verified, whole and durable."""

    def __init__(self, server: Server, bucket: str, connections: int) -> None:

        options = {
            "key": KEY,
            "secret": SECRET,
            "endpoint_url": server.url,
            "client_kwargs": {"region_name": "us-east-1"},
        }
        if server.certificate:
            options["client_kwargs"]["verify"] = server.certificate
        url = f"s3://{bucket}"
        self.journal = tempfile.TemporaryDirectory()
        self.sending = open_store(url, options, Path(self.journal.name))  # as the worker does
        self.store = open_store(url, options)
        for store in (self.sending, self.store):
            store.read("nothing")  # connects

    def prepare(self, source: Bytes) -> None:
        """Digests, before the clock starts: a committed checkpoint has them."""

        if source.in_memory:
            hasher = Hasher()
            hasher.update(source.view)
            self.entry = hasher.entry(Path(source.path).name)
        else:
            self.entry = digest_file(Path(source.path), Path(source.path).name)

    def upload(
        self, source: Bytes, key: str, reuse: tuple[str, list[tuple[int, int]]] | None = None
    ) -> None:

        known = None if reuse is None else Reuse(reuse[0], tuple(map(tuple, reuse[1])))
        if source.in_memory:
            with contextlib.closing(LentSource(source.view, self.entry)) as arena:
                self.sending.send(arena, key, known)
        else:
            with FileSource(Path(source.path), self.entry) as file:
                self.sending.send(file, key, known)

    def upload_many(self, folder: Path, names: list[str], prefix: str) -> None:

        publish(self.sending, prefix, LocalCheckpoint(folder, read_manifest(folder)))

    def download(self, key: str, target: Path, size: int) -> None:
        """The checkpoint whose one file is `key`."""

        folder, _, name = key.rpartition("/")
        prefix, _, checkpoint = folder.rpartition("/")
        final = target.parent / "fetched"
        fetch(self.store, prefix, checkpoint, target.parent, final)
        (final / name).rename(target)
