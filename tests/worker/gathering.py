"""Ranks that save parts of one checkpoint through real workers, with bytes that tell their save."""

from __future__ import annotations

import mmap
import os
import time

from bt_lightning.localdir.direct_io import BLOCK
from bt_lightning.localdir.list_and_verify_checkpoints import verify
from bt_lightning.manifest import Manifest, ManifestFacts
from bt_lightning.part_messages import AwaitParts, MissPart, PartDurable
from bt_lightning.path_layout import rank_file, shard_file
from bt_lightning.sharding.save_part import SaveKey, SavePart
from bt_lightning.worker.worker_handle import Worker
from bt_lightning.worker_messages import CommitImage, FileImage, WorkerConfig

SIZE = 300 * BLOCK
RUN = "0" * 31 + "1"
FINGERPRINT = "a" * 32


def content_of(run, number, rank, size):
    """Bytes that no other part has."""
    text = f"{run}/{number}/{rank};".encode()
    return (text * (size // len(text) + 1))[:size]


class Rank:
    """What a training process of one rank has: a worker, and an arena."""

    def __init__(self, root, rank, world_size=4, *, run=RUN, fingerprint=FINGERPRINT, **config):
        self.root, self.rank, self.world_size, self.run = root, rank, world_size, run
        self.fingerprint = fingerprint
        self.shard_size = config.pop("shard_size", 270 * BLOCK + 5 + rank)
        config = {"store_url": None, "prefix": "p", "drain_s": 30.0} | config
        self.worker = Worker(WorkerConfig(root=str(root), rank=rank, **config))
        self.descriptor = os.memfd_create("arena")
        os.ftruncate(self.descriptor, SIZE)
        self.memory = mmap.mmap(self.descriptor, SIZE)
        self.events = []
        self.worker.start()
        self.worker.begin(frozenset())
        self.worker.share(0, self.descriptor, SIZE)

    def part(self, number):
        return SavePart(
            key=SaveKey(self.run, number),
            rank=self.rank,
            world_size=self.world_size,
            fingerprint=self.fingerprint,
        )

    def image(self, number, name=None, content=None):
        """The message of a save whose bytes are written to the arena now."""
        names = {
            shard_file(self.rank, self.world_size): self.shard_size,
            rank_file(self.rank): 77,
        }
        if self.rank == 0:
            names["trainer.json"] = 120
        files, offset = [], 0
        for index, (path, size) in enumerate(names.items()):
            self.memory[offset : offset + size] = content_of(self.run, number, self.rank, size)
            told = 10 * (content or number) + index
            files.append(FileImage(path=path, offset=offset, size=size, content=told))
            offset += -(-size // BLOCK) * BLOCK
        return CommitImage(
            number=number,
            arena=0,
            checkpoint_id=name or f"checkpoint-{number}",
            files=tuple(files),
            facts=ManifestFacts(
                step=number, epoch=0, created_at=f"2030-01-01T00:00:{number % 60:02}+00:00"
            ),
            began=time.time(),
            part=self.part(number),
        )

    def save(self, number, name=None):
        self.worker.commit(self.image(number, name))

    def miss(self, number, why="it was skipped", cause="dropped"):
        message = MissPart(number=number, part=self.part(number), why=why, cause=cause)
        self.worker.commit(message)

    def wait_for(self, number):
        """Wait for parts of others; the own one is there already."""
        self.worker.commit(AwaitParts(number=number, part=self.part(number), began=time.time()))

    def poll(self):
        self.events += [one for one in self.worker.poll() if hasattr(one, "number")]
        return self.events

    def durable(self, number):
        return any(isinstance(one, PartDurable) and one.number == number for one in self.poll())

    def outcome(self, number):
        """The outcome of a save, once it is there."""
        each = [
            one for one in self.poll() if one.number == number and not isinstance(one, PartDurable)
        ]
        assert len(each) <= 1, each
        return each[0] if each else None

    def close(self):
        self.worker.kill()
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1


def is_whole(root, manifest, run, number, world_size):
    """Whether a checkpoint has the parts of this save, of all ranks, and of no other."""
    if isinstance(manifest, bytes):
        manifest = Manifest.from_bytes(manifest, "")
    found = verify(root / manifest.checkpoint_id)
    wanted = {shard_file(rank, world_size): rank for rank in range(world_size)}
    wanted |= {rank_file(rank): rank for rank in range(world_size)} | {"trainer.json": 0}
    assert {entry.path for entry in found.files} == set(wanted)
    for path, rank in wanted.items():
        data = (root / manifest.checkpoint_id / path).read_bytes()
        assert data == content_of(run, number, rank, len(data))
    there = {p.relative_to(root / found.checkpoint_id) for p in _files(root / found.checkpoint_id)}
    assert {str(path) for path in there} == {*wanted, "bt_manifest.json"}
    return found.digest == manifest.digest


def _files(folder):
    return (path for path in folder.rglob("*") if path.is_file())
