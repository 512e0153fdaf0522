"""A saver with a real worker, and small states whose every element tells its step."""

from __future__ import annotations

import contextlib
import sys
import threading
from pathlib import Path

import pytest
import torch

from bt_lightning.localdir.list_and_verify_checkpoints import verify
from bt_lightning.manifest import Manifest, ManifestFacts
from bt_lightning.path_layout import STATE, WEIGHTS
from bt_lightning.snapshot.save_record import SnapshotOptions
from bt_lightning.snapshot.saver import Saver
from bt_lightning.snapshot.state_files import lay_out_files
from bt_lightning.worker.worker_handle import Worker
from bt_lightning.worker_messages import WorkerConfig

sys.path.insert(0, str(Path(__file__).parent))


class Saving:
    """What a session does with a saver, and nothing else of it."""

    def __init__(self, root, optimizers=(), **options) -> None:
        self.root = root
        root.mkdir(exist_ok=True)
        self.worker = Worker(WorkerConfig(root=str(root), store_url=None, prefix="p", drain_s=30.0))
        self.worker.start()
        self.worker.begin(frozenset())
        self.optimizers = list(optimizers)
        self.saver = Saver(
            self.worker, lambda: self.optimizers, self.pump, SnapshotOptions(**options)
        )
        self.others = []

    def pump(self, timeout_s):
        if timeout_s:
            self.worker.await_event(timeout_s)
        for event in self.worker.poll():
            if hasattr(event, "number"):
                self.saver.handle(event)
            else:
                self.others.append(event)

    def save(self, checkpoint, name="checkpoint-1", **small):
        def facts(_):
            return ManifestFacts(step=checkpoint.get("global_step", 0), epoch=0, created_at=stamp())

        def taken(memory):
            snapshot = lay_out_files(checkpoint, cache=memory)
            snapshot.small_files.update(small)
            return snapshot

        return self.saver.save(name, taken, facts)

    def outcomes(self):
        """Wait for every save; (record, manifest or error) of each that ended."""
        self.saver.drain()
        return [
            (record, Manifest.from_bytes(what, "") if isinstance(what, bytes) else what)
            for record, what in self.saver.take_outcomes()
        ]

    def tensors(self, name):
        """Every tensor of a committed checkpoint, verified."""
        from safetensors.torch import load_file

        verify(self.root / name)
        found = {}
        for file in (WEIGHTS, STATE):
            if (self.root / name / file).exists():
                found.update(load_file(self.root / name / file))
        return found

    def close(self):
        self.saver.close()
        self.worker.stop()


def stamp():
    from datetime import datetime, timezone

    return datetime.now(timezone.utc).isoformat()


@pytest.fixture
def saving(tmp_path):
    with contextlib.ExitStack() as stack:

        def make(*args, **options):
            found = Saving(tmp_path / "root", *args, **options)
            stack.callback(found.close)
            return found

        yield make


class Counting(torch.nn.Module):
    """Weights of many sizes; after `n` steps of SGD with gradients of -1 all of them are `n`."""

    SIZES = ((700, 701), (3,), (), (256, 1024), (5, 7, 2), (129,), (512, 513))

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList(torch.zeros(size) for size in self.SIZES)
        self.register_buffer("seen", torch.zeros(1000))

    def forward(self, batch):
        self.seen += 1  # as BatchNorm does
        return batch


@pytest.fixture
def counting():
    return Counting()


@pytest.fixture
def checkpoint_of():
    return _checkpoint_of


@pytest.fixture
def slow_copies(monkeypatch):
    """Copies beside training begin only when the block ends, or when the block says so."""
    from bt_lightning.snapshot import copy_and_torn_check

    finish = copy_and_torn_check.Capture.finish

    @contextlib.contextmanager
    def slow():
        gate = threading.Event()

        def gated(self):
            assert gate.wait(60)
            finish(self)

        monkeypatch.setattr(copy_and_torn_check.Capture, "finish", gated)
        try:
            yield gate.set
        finally:
            gate.set()

    return slow


def _checkpoint_of(module, optimizers, step):
    """As Lightning dumps it."""
    return {
        "epoch": 0,
        "global_step": step,
        "state_dict": module.state_dict(),
        "loops": {},
        "optimizer_states": [optimizer.state_dict() for optimizer in optimizers],
        "rng": torch.get_rng_state(),
    }
