"""What training, saves and loads do on a CUDA device, with the code under test as it is.

Each scenario runs once on a simulated device, and raises `TornError` where bytes are not those of
one step. Weights of `n` everywhere are those of step `n`.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

import torch
from simulated_device import CUDA, span

from bt_lightning.restore.load_to_device import DeviceMemory
from bt_lightning.snapshot.arena import Arena
from bt_lightning.snapshot.base_table import BaseChangedError, BaseTable, BaseTensor, LeftOut
from bt_lightning.snapshot.copy_and_torn_check import Capture, Streams
from bt_lightning.snapshot.device_sources import CopySource, constant_sources
from bt_lightning.snapshot.host_copies import Copies, HostCopier
from bt_lightning.snapshot.optimizer_guard import OptimizerGuard
from bt_lightning.snapshot.tensor_digests import tensor_digests

SIZE = 6
"""Elements of a weight; less than what is copied alone, so two are concatenated."""


class TornError(AssertionError):
    """Bytes of more than one step, or of another tensor."""


class HostWaitError(AssertionError):
    """The training thread waited for kernels."""


@dataclass
class Training:
    """Weights on a device, an optimizer of torch, and the guard before its steps."""

    device: object
    num_weights: int = 1
    sharded: bool = False
    step: int = 0
    capture: Capture | None = None
    _held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __post_init__(self):
        values = [self.device.full((SIZE,), 0.0) for _ in range(self.num_weights)]
        self.weights = [torch.nn.Parameter(self._sharded(value)) for value in values]
        self.seen = self.device.full((SIZE,), 0.0)
        self.optimizer = torch.optim.SGD(self.weights, lr=1.0)
        self.streams, self.copier = Streams(), HostCopier()
        guard = OptimizerGuard(lambda: self.capture and self.capture.guard())
        self._held.callback(self.copier.close)
        self._held.callback(guard.close)

    def _sharded(self, value):
        if not self.sharded:
            return value
        from torch.distributed.tensor import DTensor, Shard, init_device_mesh

        mesh = init_device_mesh("cpu", (4,))
        return DTensor.from_local(value, mesh, [Shard(0)], run_check=False)

    @property
    def local(self):
        """What of the weights is on this device."""
        found = [weight.detach() for weight in self.weights]
        return [one.to_local() for one in found] if self.sharded else found

    def train(self):
        """One step: a forward that reads weights, uses memory and counts, then the update."""
        for value in self.local:
            activation = value * 2
            activation.mul_(3)
            del activation
        self.seen += 1
        for weight in self.weights:
            weight.grad = self._sharded(self.device.full((SIZE,), -1.0))
        self.optimizer.step()
        self.step += 1

    def sources(self, *, offset=0, constants=False):
        size = SIZE * 4
        found, place = [], offset
        for weight, value in zip(self.weights, self.local, strict=True):
            whole = weight.detach() if self.sharded else None
            found.append(CopySource(place, value, owned=True, whole=whole))
            place += size
        found.append(CopySource(place, self.seen, owned=False))
        place += size
        if constants:
            found += constant_sources([(place, bytes([7] * size))], 0, CUDA)
        return found

    def save(self, arena, *, lazy=True, **placed):
        capture = Capture([Copies(device=self.sources(**placed))], self.copier, lazy=lazy)
        self.capture = capture
        capture.start(arena, self.streams)
        return capture

    def finish(self, capture):
        """On the copy thread; then the worker reads, if it is told to."""
        with self.device.thread() as thread:
            capture.finish()
        return None if capture.torn else thread

    def read(self, thread, arena, step, *, offset=0, constants=False):
        """What the worker finds in the arena is of one step, or it was not told to commit."""
        if thread is None:
            msg = "the save was refused"
            raise TornError(msg)
        count = (self.num_weights + 1) * SIZE
        memory = arena.memory[offset : offset + count * 4]
        orders, training = self.device.orders, self.device.orders.host
        orders.host = thread
        found = orders.on_host("commit", lambda: memory.clone().view(torch.float32), [span(memory)])
        tail = arena.memory[offset + count * 4 :][: SIZE * 4]
        if constants:
            tail = orders.on_host("commit", tail.clone, [span(tail)])
        orders.host = training
        if not torch.equal(found, torch.full((count,), float(step))):
            msg = f"step {step}: {found.tolist()}"
            raise TornError(msg)
        if constants and not bool((tail == 7).all()):
            msg = f"constant bytes: {tail.tolist()}"
            raise TornError(msg)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._held.close()


@contextlib.contextmanager
def arena_of(size=4096):
    arena = Arena(0, size)
    try:
        yield arena
    finally:
        arena.close()


def save(device, *, room=False, lazy=True, late=False, constants=False, own_stream=False, **kind):
    """A save between two steps; the copy thread is done before the next one, or behind it."""
    device.free_bytes = 2**40 if room else 0
    stream = device.new_stream() if own_stream else device.default_stream()
    with device, device.on_stream(stream), Training(device, **kind) as job, arena_of() as arena:
        job.train()
        began = device.orders.host.waited_for
        capture = job.save(arena, lazy=lazy, constants=constants)
        waited_for = device.orders.labels(device.orders.host.waited_for & ~began)
        if any(stream.name in label for label in waited_for):
            raise HostWaitError(waited_for)
        if not late:
            thread = job.finish(capture)
        job.train()
        if late:
            thread = job.finish(capture)
        job.read(thread, arena, 1, constants=constants)


def save_without_memory(device, *, lazy):
    """No clone can be made on the device, though it seemed to have room."""
    with device, Training(device) as job, arena_of() as arena:
        job.train()
        copied = job.sources()
        copied = [s for s in copied if s.owned]  # a clone of the others is needed in any case
        capture = job.capture = Capture([Copies(device=copied)], job.copier, lazy=lazy)
        device.full_on = device.default_stream()
        capture.start(arena, job.streams)
        device.full_on = None
        if not lazy:
            job.capture = None  # an eager copy needs no guard
        job.train()
        thread = job.finish(capture)
        job.num_weights -= 1  # its count has one of what a forward changes
        job.read(thread, arena, 1)


def two_saves(device, *, room=False):
    """Of two steps, into two arenas, the second before the first is committed."""
    device.free_bytes = 2**40 if room else 0
    with device, Training(device) as job, arena_of() as first, arena_of() as second:
        job.train()
        one = job.save(first)
        job.train()
        other = job.save(second)
        job.train()
        job.read(job.finish(one), first, 1)
        job.read(job.finish(other), second, 2)


def two_optimizers(device):
    """Each on a stream of its own, which waited for the stream of the save after it."""
    device.free_bytes = 0
    with device, Training(device) as one, Training(device) as other, arena_of() as arena:
        side = device.new_stream()
        one.train()
        other.train()
        sources = one.sources() + other.sources(offset=2 * SIZE * 4)
        capture = Capture([Copies(device=sources)], one.copier, lazy=True)
        one.capture = other.capture = capture
        capture.start(arena, one.streams)
        side.wait_stream(device.default_stream())
        one.train()
        with device.on_stream(side):
            other.train()
        thread = one.finish(capture)
        one.read(thread, arena, 1)
        one.read(thread, arena, 1, offset=2 * SIZE * 4)


def freed_state(device):
    """What was saved is let go by training at once, and its memory is used for something else."""
    device.free_bytes = 0
    with device, Training(device) as job, arena_of() as arena:
        job.train()
        capture = job.save(arena)
        capture.guard()
        old, job.weights = job.weights, []
        job.optimizer.param_groups.clear()
        capture_sources, capture._sources, capture._checked = capture._sources, [], []
        del old, capture_sources
        job.seen = device.full((SIZE,), 0.0)
        device.full((SIZE,), 9.0)
        device.full((SIZE,), 9.0)
        job.read(job.finish(capture), arena, 1)


def failed_save(device, *, where):
    """Its arena is used by the next save at once: nothing of the failed one may still arrive."""
    device.free_bytes = 0
    with device, Training(device) as job, arena_of() as arena:
        job.train()
        host = Copies(device=job.sources())
        capture = job.capture = Capture([host], job.copier, lazy=True)
        broken = _BrokenCopier(at_start=where == "start")
        capture._copier = broken
        with contextlib.suppress(OSError):
            capture.start(arena, job.streams)
            with device.thread():
                capture.finish()
        memory = arena.memory[: 2 * SIZE * 4]
        orders = device.orders
        orders.on_host("copy of another save", lambda: memory.fill_(5), writes=[span(memory)])
        found = orders.on_host("commit", memory.clone, [span(memory)])
        if not bool((found == 5).all()):
            msg = "bytes of a save that failed"
            raise TornError(msg)


class _BrokenCopier:
    def __init__(self, *, at_start) -> None:
        self._at_start = at_start
        self._calls = 0

    def run(self, batches):
        self._calls += 1
        if self._at_start or self._calls > 1:
            raise OSError


def load(device, *, own_stream=False):
    """Two ranges through one buffer, into memory that kernels of the caller still use."""
    orders = device.orders
    stream = device.new_stream() if own_stream else device.default_stream()
    with device:
        with device.on_stream(stream):
            for other in (device.default_stream(), stream):
                with device.on_stream(other):
                    held = [device.full((SIZE,), 3.0) for _ in range(2)]
                    for tensor in held:
                        tensor.mul_(2)
                    del held, tensor
            memory = DeviceMemory(CUDA)
        with device.thread("reader") as thread:
            tensors = [memory.empty((SIZE,), torch.float32, large=False) for _ in range(2)]
            for number, tensor in enumerate(tensors):
                part = memory.flat(tensor)

                def fill(buffers, number=number):
                    content = torch.full((SIZE,), float(number)).view(torch.uint8)
                    whole = torch.frombuffer(buffers[0], dtype=torch.uint8)
                    orders.on_host("read", lambda: whole.copy_(content), writes=[span(whole)])

                memory.receive([part], SIZE * 4, fill)
        orders.host.done_before |= thread.done_before  # `in_parallel` returns when they have ended
        with device.on_stream(stream):
            copies = [tensor.clone() for tensor in tensors]
        orders.finish()
        for number, copy in enumerate(copies):
            if not torch.equal(copy.bytes_, torch.full((SIZE,), float(number))):
                msg = f"{number}: {copy.bytes_.tolist()}"
                raise TornError(msg)


def digest(device, *, own_stream=False, strided=False):
    """Of weights that were written just before, by another thread than the one that trains."""
    with device:
        stream = device.new_stream() if own_stream else device.default_stream()
        with device.on_stream(stream):
            weight = device.full((SIZE,), 0.0)
            weight.add_(4)
            weight = weight.view(2, -1).t() if strided else weight
            table = BaseTable({"w": BaseTensor.of(weight, _digest_of_fours())})
            left_out = LeftOut(table, {"w": weight})
        with device.thread("check"):
            try:
                left_out.verify()
            except BaseChangedError as error:
                msg = "the digest is of other bytes"
                raise TornError(msg) from error


def _digest_of_fours():
    return tensor_digests({"w": torch.full((SIZE,), 4.0)})["w"]


LARGE = {
    "two weights": (save, {"num_weights": 2, "late": True}),
    "two saves": (two_saves, {}),
    "two saves of clones": (two_saves, {"room": True}),
    "two optimizers": (two_optimizers, {}),
    "load on another stream": (load, {"own_stream": True}),
}
"""What has too many orders to run all."""
SMALL = {
    "save": (save, {}),
    "save, copied late": (save, {"late": True}),
    "save of clones": (save, {"room": True}),
    "save of clones, copied late": (save, {"room": True, "late": True}),
    "eager save": (save, {"lazy": False}),
    "save with constants": (save, {"constants": True}),
    "save on another stream": (save, {"own_stream": True, "late": True}),
    "save with constants on another stream": (save, {"own_stream": True, "constants": True}),
    "no memory for clones": (save_without_memory, {"lazy": True}),
    "no memory for eager clones": (save_without_memory, {"lazy": False}),
    "freed state": (freed_state, {}),
    "failed start": (failed_save, {"where": "start"}),
    "failed finish": (failed_save, {"where": "finish"}),
    "load": (load, {}),
    "digest": (digest, {}),
    "digest after another stream": (digest, {"own_stream": True}),
    "digest of a transposed weight": (digest, {"own_stream": True, "strided": True}),
}
SHARDED = {
    f"{name} of shards": (scenario, {**options, "sharded": True})
    for name, (scenario, options) in SMALL.items()
    if scenario is save
}
SCENARIOS = SMALL | LARGE
