"""Sends one object and is killed meanwhile: `upload_job.py URL ENDPOINT SECRET JOURNAL SEED`."""

from __future__ import annotations

import contextlib
import random
import sys
from pathlib import Path

import xxhash

from bt_lightning.store.s3.s3_store import S3Store
from bt_lightning.store.transfer.file_source import BufferedSource

MIB = 1024 * 1024


class Content(BufferedSource):
    def __init__(self, seed):
        self._data = memoryview(random.Random(seed).randbytes(MIB) * 41)
        self.size = self.part_bytes = len(self._data)
        self.digest = xxhash.xxh3_128_hexdigest(self._data)

    @contextlib.contextmanager
    def hold(self, offset, size):
        yield self._data[offset : offset + size]


def main():
    url, endpoint, secret, journal, seed = sys.argv[1:]
    where = {"endpoint_url": endpoint, "region_name": "us-east-1"}
    options = {"key": "AKIAOFTHETESTS", "secret": secret, "client_kwargs": where}
    store = S3Store(url, options, Path(journal), part_bytes=8 * MIB)
    print("ready", flush=True)
    sys.stdin.readline()
    store.send(Content(int(seed)), "key")


if __name__ == "__main__":
    main()
