"""Processes that are ranks of one process group, and small models that are sharded over them."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import time
import traceback
from datetime import timedelta

import torch
import torch.multiprocessing as mp

_LIMIT_S = 240.0


def run(ranks, act, *args):
    """Run `act(rank, *args)` on each rank with gloo; return what each returned, by rank.

    `act` is a function of a module. All processes are gone when this returns or raises.
    """
    context = mp.get_context("spawn")
    results = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=_rank, args=(rank, ranks, port, results, act, args))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    found = {}
    until = time.monotonic() + _LIMIT_S
    try:
        while len(found) < ranks:
            try:
                rank, value, error = results.get(timeout=1.0)
            except queue.Empty:
                dead = [each.exitcode for each in processes if each.exitcode not in {None, 0}]
                assert not dead, f"a rank ended with {dead}"
                assert time.monotonic() < until, f"only rank {sorted(found)} came to an end"
                continue
            assert not error, f"rank {rank}:\n{error}"
            found[rank] = value
        for process in processes:
            process.join(max(0.1, until - time.monotonic()))
    finally:
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
            process.join()
    return [found[rank] for rank in range(ranks)]


def _rank(rank, ranks, port, results, act, args):
    torch.set_num_threads(1)
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", port, ranks, is_master=rank == 0)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=90)
    )
    try:
        value, error = act(rank, *args), ""
        dist.barrier()
    except BaseException:  # noqa: BLE001 - the test shows it
        value, error = None, traceback.format_exc()
    results.put((rank, value, error))
    if not error:
        dist.destroy_process_group()


KINDS = {"fsdp2": 2, "tp": 2, "hsdp": 4, "2x2": 4}
"""How a model is sharded -> on how many ranks."""


class Net(torch.nn.Module):
    """Uneven sizes, a scalar, a tied weight, buffers; some is not parallelized by TP."""

    def __init__(self, width=24):
        super().__init__()
        self.embed = torch.nn.Embedding(37, width)
        self.up = torch.nn.Linear(width, 3 * width)
        self.down = torch.nn.Linear(3 * width, width)
        self.norm = torch.nn.BatchNorm1d(width)
        self.head = torch.nn.Linear(width, 37, bias=False)
        self.head.weight = self.embed.weight
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.register_buffer("mask", torch.ones(3), persistent=False)

    def forward(self, tokens):
        hidden = self.norm(self.embed(tokens))
        return self.head(self.down(self.up(hidden).relu()) * self.scale)


def build(kind, width=24):
    """A sharded `Net` and its optimizer, after one step."""
    from torch.distributed.device_mesh import init_device_mesh

    torch.manual_seed(3)
    net = Net(width)
    fully_shard = fsdp2()
    if kind == "fsdp2":
        fully_shard(net.up)
        fully_shard(net)
    elif kind == "hsdp":
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        fully_shard(net.up, mesh=mesh)
        fully_shard(net, mesh=mesh)
    else:
        mesh = init_device_mesh(
            "cpu", (1, 2) if kind == "tp" else (2, 2), mesh_dim_names=("data", "tensor")
        )
        _parallelize(net, mesh["tensor"])
        if kind == "2x2":
            fully_shard(net.up, mesh=mesh["data"])
            fully_shard(net, mesh=mesh["data"])
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, foreach=False)
    step(net, optimizer)
    return net, optimizer


def fsdp2():
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:  # before torch 2.6
        from torch.distributed._composable.fsdp import fully_shard
    return fully_shard


def _parallelize(net, mesh):
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    parallelize_module(net, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def step(net, optimizer, seed=0):
    """Forward, backward and update, on data that is the same on each rank."""
    torch.manual_seed(seed)
    net(torch.randint(0, 37, (8,))).pow(2).mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def local_bytes(state):
    """Flat name -> this rank's part as bytes, of `live_state`."""
    from bt_lightning.snapshot.local_shards import is_dtensor

    flat = {f"state_dict.{name}": each for name, each in state["state_dict"].items()}
    for index, optimizer in enumerate(state["optimizer_states"]):
        for name, entry in optimizer["state"].items():
            for key, each in entry.items():
                flat[f"optimizer_{index}.state.{name}.{key}"] = each
    parts = {name: each.to_local() if is_dtensor(each) else each for name, each in flat.items()}
    return {name: bytes_of(part.detach()) for name, part in parts.items()}


def part_bytes(state):
    """As `local_bytes`, also of FSDP1's tensors."""
    from bt_lightning.snapshot.local_shards import stored_part

    flat = {f"state_dict.{name}": each for name, each in state["state_dict"].items()}
    for index, optimizer in enumerate(state["optimizer_states"]):
        for name, entry in optimizer["state"].items():
            for key, each in entry.items():
                flat[f"optimizer_{index}.state.{name}.{key}"] = each
    return {name: bytes_of(stored_part(each, name).detach()) for name, each in flat.items()}


def bytes_of(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


class Collectives:
    """Counts collectives while the block runs: of the functions of torch.distributed, on any
    thread, and of operators, on this one."""

    NAMES = (
        "all_gather", "all_gather_object", "all_gather_into_tensor", "all_gather_coalesced",
        "all_reduce", "all_reduce_coalesced", "all_to_all", "all_to_all_single", "barrier",
        "batch_isend_irecv", "broadcast", "broadcast_object_list", "gather", "gather_object",
        "irecv", "isend", "monitored_barrier", "new_group", "recv", "reduce", "reduce_scatter",
        "reduce_scatter_tensor", "scatter", "scatter_object_list", "send",
    )  # fmt: skip

    def __init__(self):
        self.found = []

    @contextlib.contextmanager
    def counted(self):
        import torch.distributed as dist
        from torch.utils._python_dispatch import TorchDispatchMode

        found = self.found

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                if "c10d" in func.namespace:
                    found.append(str(func))
                return func(*args, **(kwargs or {}))

        originals = {name: getattr(dist, name) for name in self.NAMES if hasattr(dist, name)}

        def wrapped(name):
            def call(*args, **kwargs):
                found.append(name)
                return originals[name](*args, **kwargs)

            return call

        for name in originals:
            setattr(dist, name, wrapped(name))
        try:
            with Watch():
                yield self
        finally:
            for name, original in originals.items():
                setattr(dist, name, original)


def exchange_of(ranks, limit_s=120.0):
    """An exchange of ranks that count their saves in `counts[0]`."""
    from bt_lightning.session.shard_exchange import ShardExchange

    counts = [0]
    exchange = ShardExchange(ranks, lambda: counts[0], limit_s)
    exchange.counts = counts
    return exchange


def writer_of(exchange):
    """A writer of that exchange, each of whose `take`s is a save."""
    from bt_lightning.session.shard_writer import ShardWriter

    writer = ShardWriter(exchange)
    take = writer.take

    def counted(*args):
        exchange.counts[0] += 1
        return take(*args)

    writer.take = counted
    return writer


class RankSaving:
    """A saver and a writer of parts on one rank, which commit to a directory of its own."""

    def __init__(self, root, optimizers, exchange=None, **options):
        from bt_lightning.session.ranks import Ranks
        from bt_lightning.snapshot.save_record import SnapshotOptions
        from bt_lightning.snapshot.saver import Saver
        from bt_lightning.worker.worker_handle import Worker
        from bt_lightning.worker_messages import WorkerConfig

        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.worker = Worker(WorkerConfig(root=str(root), store_url=None, prefix="p", drain_s=30.0))
        self.worker.start()
        self.worker.begin(frozenset())
        self.saver = Saver(
            self.worker, lambda: optimizers, self.pump, SnapshotOptions(snapshot="lazy", **options)
        )
        self.exchange = exchange or exchange_of(Ranks.of_process_group())
        self.writer = writer_of(self.exchange)

    def pump(self, timeout_s):
        if timeout_s:
            self.worker.await_event(timeout_s)
        for event in self.worker.poll():
            if hasattr(event, "number"):
                self.saver.handle(event)

    def save(self, state, name="checkpoint-1"):
        return self.saver.save(
            name,
            lambda cache: self.writer.take(state, cache),
            lambda snapshot: self.writer.facts(state, snapshot),
        )

    def outcomes(self):
        """Wait for every save; what each came to: the manifest's bytes, or an error."""
        self.saver.drain()
        return [what for _, what in self.saver.take_outcomes()]

    def tensors(self, name="checkpoint-1"):
        """Flat name -> bytes, of this rank's shard file, verified."""
        from safetensors.torch import load_file

        from bt_lightning.localdir.list_and_verify_checkpoints import verify

        verify(self.root / name)
        (file,) = (self.root / name).glob("shard-*.safetensors")
        return {name: bytes_of(tensor) for name, tensor in load_file(file).items()}

    def close(self):
        self.saver.close()
        self.worker.stop()
        self.exchange.close()


def full_state(net, optimizers, step_number=1, own=None):
    """As Lightning dumps it on a rank of a sharded strategy."""
    from bt_lightning.snapshot.local_shards import live_state

    state = {"epoch": 0, "global_step": step_number, "loops": {"a": 1}}
    state["callbacks"] = {"best": {"score": torch.tensor(1.5)}}  # which rank 0 alone stores
    state.update(live_state(net, optimizers))
    state["bt_lightning"] = {"rank": own or {"rng": torch.get_rng_state()}}
    return state
