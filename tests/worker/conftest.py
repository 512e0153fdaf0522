"""Real worker processes that end with their test, and checkpoints for them to publish."""

from __future__ import annotations

import contextlib
import importlib
import subprocess
import sys
import threading
import time

import pytest

from bt_lightning.localdir.commit import commit
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import job_prefix
from bt_lightning.retention import retention_policy
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.catalog.listing import list_job
from bt_lightning.worker.worker_handle import Worker
from bt_lightning.worker_messages import Published, WorkerConfig, WorkFailed

_SERVER = """
import sys
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer
s3_backends["123456789012"]["aws"].create_bucket("bucket", "us-east-1")
server = ThreadedMotoServer(ip_address="127.0.0.1", port=int(sys.argv[1]), verbose=False)
server.start()
print("ready", flush=True)
sys.stdin.read()
server.stop()
"""
_RULE = """
from dataclasses import dataclass
from bt_lightning.retention import Decision

@dataclass(frozen=True)
class EveryNSteps:
    steps: int

    def decide(self, tier):
        return [Decision.KEEP if c.step % self.steps == 0 else None for c in tier.checkpoints]
"""
PREFIX = job_prefix("p", "j", 0)


def eventually(predicate, timeout_s=30.0):
    """Wait for `predicate` to be true; what it returned then."""
    until = time.monotonic() + timeout_s
    pause = threading.Event()
    while not (value := predicate()):
        assert time.monotonic() < until, "it did not happen in time"
        pause.wait(0.01)
    return value


class Scene:
    """A checkpoint directory, a folder as the store, and workers between them."""

    def __init__(self, tmp_path) -> None:
        self.root = tmp_path / "root"
        self.folder = tmp_path / "store"
        self.root.mkdir()
        self.prefix = PREFIX
        self.workers: list[Worker] = []
        self.events: list[Published | WorkFailed] = []

    eventually = staticmethod(eventually)

    @staticmethod
    @contextlib.contextmanager
    def s3_at(port):
        """A real S3 server with the bucket `bucket`, while the block lasts."""
        command = [sys.executable, "-c", _SERVER, str(port)]
        ends = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(command, text=True, **ends) as server:
            try:
                assert server.stdout.readline() == "ready\n"
                yield
            finally:
                server.kill()

    def outcome(self, worker, number):
        """Wait for the outcome of the save with this number."""
        found = []

        def look_again():
            found.extend(worker.poll())
            return [event for event in found if getattr(event, "number", None) == number]

        (event,) = eventually(look_again)
        return event

    def make(self, *steps, generation=1, origin=None):
        """Commit `checkpoint-<step>` for each step; return the manifests."""
        return [self._make(step, generation, origin or {}) for step in steps]

    def _make(self, step, generation, origin):
        name = f"checkpoint-{step}"

        def describe(entries):
            return Manifest(
                checkpoint_id=name,
                generation=generation,
                step=step,
                epoch=0,
                created_at="2030-01-01T00:00:00+00:00",
                files=entries,
                origin=origin,
            )

        files = {"model.safetensors": lambda: [b"%d" % step * 1000]}
        return commit(self.root / name, self.root, files, describe)

    def worker(self, url="", drain_s=30.0, options=None, root=None, **more) -> Worker:
        config = WorkerConfig(
            root=str(root or self.root),
            store_url=self.folder.as_uri() if url == "" else url,
            storage_options=options or {},
            prefix=PREFIX,
            drain_s=drain_s,
            **more,
        )
        worker = Worker(config)
        self.workers.append(worker)
        return worker

    def watch(self, worker, predicate) -> None:
        """Poll `worker` and keep its events until `predicate` is true."""

        def look_again():
            self.events += worker.poll()
            return predicate()

        eventually(look_again)

    @property
    def published(self):
        return [event.checkpoint_id for event in self.events if isinstance(event, Published)]

    @property
    def failures(self):
        return [event.error for event in self.events if isinstance(event, WorkFailed)]

    def in_store(self, folder=None):
        return set(list_job(LocalStore(folder or self.folder), PREFIX).committed)

    def on_disk(self):
        return {found.manifest.checkpoint_id for found in list_committed(self.root)[0]}

    def names(self, *steps):
        return {f"checkpoint-{step}" for step in steps}


@pytest.fixture
def scene(tmp_path):
    scene = Scene(tmp_path)
    yield scene
    for worker in scene.workers:
        worker.kill()


@pytest.fixture
def every_ten(tmp_path, monkeypatch):
    """The policy of every job with a rule of our own, in a module that a worker finds as well."""
    name = "keep_every_n_steps"
    (tmp_path / f"{name}.py").write_text(_RULE)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module(name)
    monkeypatch.delitem(sys.modules, name)  # at the end, the next test has one of its own
    monkeypatch.setitem(sys.modules, name, module)
    return retention_policy(module.EveryNSteps(10))
