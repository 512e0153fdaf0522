"""One training run of `stall.py`, in a process of its own; prints one JSON line.

The state is `size` bytes: weights and two moments for each. With `--step wait` a step is a wait, as
for a device that computes by itself, and an update that writes one number to each tensor. With
`--step cpu` it is a real forward, backward and AdamW of a multilayer perceptron on the CPU. With
`--step cuda` the state lies on a CUDA device, which multiplies matrices for as long.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import threading
import time
from pathlib import Path

import lightning as L
import psutil
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from step_times import StepTimes, quiet
from torch.utils.data import DataLoader

from bt_lightning import BTLightning
from bt_lightning.localdir.event_log import read_events


class Stamping(torch.optim.Optimizer):
    """AdamW's state, and a step that writes one number into each tensor instead of computing."""

    def __init__(self, params) -> None:
        super().__init__(params, {"lr": 1e-3, "betas": (0.9, 0.999)})

    def step(self, closure=None):
        loss = None if closure is None else closure()
        with torch.no_grad():
            for group in self.param_groups:
                for weight in group["params"]:
                    state = self.state[weight]
                    if not state:
                        state["step"] = torch.tensor(0.0)
                        state["exp_avg"] = torch.zeros_like(weight)
                        state["exp_avg_sq"] = torch.zeros_like(weight)
                    state["step"].add_(1)
                    for tensor in (weight, state["exp_avg"], state["exp_avg_sq"]):
                        tensor.view(-1)[:1].add_(1)
        return loss


class Waiting(L.LightningModule):
    """`tensors` counts all of the checkpoint: a weight, two moments and a step for each layer."""

    def __init__(self, size: int, tensors: int, step_s: float) -> None:
        super().__init__()
        layers = tensors // 4
        each = size // 4 // 3 // layers
        self.layers = torch.nn.ParameterList(torch.ones(each) for _ in range(layers))
        self.step_s = step_s

    def training_step(self, batch, index):
        time.sleep(self.step_s)
        return sum(layer[:1].sum() for layer in self.layers[:1])

    def backward(self, loss):
        """The gradient of a large weight is as large: nobody looks at it here."""

    def configure_optimizers(self):
        return Stamping(self.parameters())


class OnDevice(Waiting):
    """The wait is work of a CUDA device, which the training thread waits for at each step."""

    def on_train_start(self) -> None:
        self.factor = torch.randn(4096, 4096, device=self.device)
        self.product = torch.empty_like(self.factor)
        self.rounds = 50
        self._multiply()  # the first is slower
        started = time.perf_counter()
        self._multiply()
        self.rounds = max(1, round(self.step_s * self.rounds / (time.perf_counter() - started)))

    def _multiply(self) -> None:
        for _ in range(self.rounds):
            torch.mm(self.factor, self.factor, out=self.product)
        torch.cuda.synchronize()

    def training_step(self, batch, index):
        self._multiply()
        return sum(layer[:1].sum() for layer in self.layers[:1])


class Computing(L.LightningModule):
    def __init__(self, size: int, tensors: int, step_s: float) -> None:
        super().__init__()
        width = 1024
        layers = max(1, size // 4 // 3 // (width * width))
        self.net = torch.nn.Sequential(
            *[torch.nn.Linear(width, width, bias=False) for _ in range(layers)]
        )

    def training_step(self, batch, index):
        return self.net(torch.ones(64, 1024)).pow(2).mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


class Clock(StepTimes, Callback):
    """Times of the batches, and of each save on the training thread."""

    def on_train_batch_start(self, *args) -> None:
        self.start_step()

    def on_train_end(self, *args) -> None:
        self.end()

    def watch(self, trainer) -> None:
        save = trainer.save_checkpoint

        def timed(*args, **kwargs):
            with self.saving():
                save(*args, **kwargs)

        trainer.save_checkpoint = timed


class DcpIO(CheckpointIO):
    """`torch.distributed.checkpoint.async_save` with one stager for all saves.

    Shared memory is reused, staging has a thread, and the optimizer waits for it (`Staged`), as
    torchtitan does it.
    """

    def __init__(self, kind: str, *, pinned: bool, group=None) -> None:
        """`group`: for the collectives of its thread, beside which training has its own."""
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
        from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

        options = StagingOptions(
            use_pinned_memory=pinned,
            use_shared_memory=True,
            use_async_staging=True,
            use_non_blocking_copy=pinned,
        )
        self.stager = DefaultStager(options)
        self.kind = AsyncCheckpointerType[kind]
        self.group = group
        self.staging = self.upload = None
        self.durable: list[float] = []

    def save_checkpoint(self, checkpoint, path, storage_options=None) -> None:
        import torch.distributed.checkpoint as dcp

        if self.upload is not None:
            self.upload.result()
        began = time.perf_counter()
        made = dcp.async_save(
            checkpoint,
            checkpoint_id=path,
            process_group=self.group,
            async_checkpointer_type=self.kind,
            async_stager=self.stager,
        )
        self.staging, self.upload = made.staging_completion, made.upload_completion
        self.upload.add_done_callback(lambda _: self.durable.append(time.perf_counter() - began))

    def load_checkpoint(self, path, map_location=None, weights_only=None):
        raise NotImplementedError

    def remove_checkpoint(self, path) -> None:
        shutil.rmtree(path, ignore_errors=True)

    def teardown(self) -> None:
        if self.upload is not None:
            self.upload.result()
            self.upload = None


class TorchCheckpointingIO(CheckpointIO):
    """Meta's `torch_checkpointing`: a stager in shared memory, a process that writes.

    The optimizer waits for the staging, as its guide has it. Its direct writes need a file system
    that takes any buffer: ext4 refuses them, so they are off.
    """

    def __init__(self) -> None:
        from torch_checkpointing import CheckpointManager
        from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

        storage = LocalFileSystemStorageConfig(use_direct_io=False)
        self.manager = CheckpointManager.Config(storage_config=storage).build()
        self.staging = self.writing = None
        self.durable: list[float] = []

    def save_checkpoint(self, checkpoint, path, storage_options=None) -> None:
        began = time.perf_counter()
        self.writing = self.manager.save(str(path), checkpoint)
        self.staging = self.manager._staging_future  # noqa: SLF001 - it has no public name
        self.writing.add_done_callback(lambda _: self.durable.append(time.perf_counter() - began))

    def load_checkpoint(self, path, map_location=None, weights_only=None):
        raise NotImplementedError

    def remove_checkpoint(self, path) -> None:
        shutil.rmtree(path, ignore_errors=True)

    def teardown(self) -> None:
        if self.writing is not None:
            self.writing.result()
            self.manager.close()
            self.writing = None


class Staged(Callback):
    def __init__(self, io: DcpIO | TorchCheckpointingIO) -> None:
        self.io = io

    def on_before_optimizer_step(self, *args) -> None:
        if self.io.staging is not None:
            self.io.staging.result()
            self.io.staging = None


class Sampler(threading.Thread):
    """The memory of this process and its children, looked at fifty times a second.

    Memory that is shared (an arena, the tensors of a stager) is counted once, code of libraries and
    cached files not at all. Source: proc_pid_status(5).
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._over = threading.Event()

    def run(self) -> None:
        own = psutil.Process()
        while not self._over.wait(0.02):
            private = shared = 0
            for process in (own, *own.children(recursive=True)):
                with contextlib.suppress(OSError):  # it has just ended
                    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                    sizes = {k: v for k, _, v in (line.partition(":") for line in lines)}
                    if "RssAnon" in sizes:
                        private += 1024 * int(sizes["RssAnon"].split()[0])
                        shared = max(shared, 1024 * int(sizes["RssShmem"].split()[0]))
            self.peak = max(self.peak, private + shared)

    def close(self) -> int:
        self._over.set()
        self.join()
        return self.peak


def system(name: str, root: Path, every: int, *, cuda: bool):
    """(callbacks, plugins, facts after the run)."""
    if name == "none":  # with the callback that saves, which never does
        return [ModelCheckpoint(dirpath=root, every_n_train_steps=10**9)], [], dict
    saving = ModelCheckpoint(
        dirpath=None if name.startswith("ours") else root, every_n_train_steps=every
    )
    if name.startswith("ours"):
        overlap = name.partition("-")[2] or "wait"

        def durable():
            found = [e for e in read_events(root) if e["event"] == "save"]
            return {
                "durable_s": [e["local_durable_s"] for e in found if e["local_durable_s"]],
                "worker_s": [e["cpu_s"] for e in found if e["local_durable_s"]],
                "guard_ms": [e["guard_ms"] for e in found],
                "decisions": [e["decision"] for e in found],
                "kinds": [e["snapshot"] for e in found],
            }

        ours = BTLightning(dir=root, overlap=overlap, save_at_end=False)  # as the rivals save
        return [ours, saving], [], durable
    if name == "plain":
        return [saving], [], dict
    if name == "async":
        return [saving], [AsyncCheckpointIO()], dict
    if name == "torch-checkpointing":
        io = TorchCheckpointingIO()
        return [saving, Staged(io)], [io], lambda: {"durable_s": io.durable}
    io = DcpIO(name.partition("-")[2].upper(), pinned=cuda)
    return [saving, Staged(io)], [io], lambda: {"durable_s": io.durable}


KINDS = {"wait": Waiting, "cpu": Computing, "cuda": OnDevice}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--system", required=True)
    parser.add_argument("--size", type=int, default=1_500_000_000)
    parser.add_argument("--tensors", type=int, default=80)
    parser.add_argument("--step", choices=list(KINDS), default="wait")
    parser.add_argument("--step-s", type=float, default=0.1)
    parser.add_argument("--every", type=int, default=80)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sample", type=int, default=0)
    parser.add_argument("--dir", type=Path, required=True)
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(options.threads)
    if options.system.startswith("dcp"):
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK="0", WORLD_SIZE="1")
        torch.distributed.init_process_group(
            "gloo", rank=0, world_size=1, store=torch.distributed.HashStore()
        ) if options.system == "dcp-thread" else _tcp_group()
    cuda = options.step == "cuda"
    module = KINDS[options.step](options.size, options.tensors, options.step_s)
    callbacks, plugins, told = system(options.system, options.dir, options.every, cuda=cuda)
    clock = Clock()
    trainer = L.Trainer(
        max_steps=options.steps,
        max_epochs=-1,
        accelerator=options.step if cuda else "cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock, *callbacks],
        plugins=plugins,
    )
    clock.watch(trainer)
    sampler = Sampler() if options.sample else None
    if sampler is not None:
        sampler.start()
    trainer.fit(module, DataLoader(torch.zeros(10**6, 1)))
    found = clock.facts(told)
    if sampler is not None:
        found["peak_memory"] = sampler.close()
    print(json.dumps(found), flush=True)


def _tcp_group() -> None:
    """Process mode starts a process of its own, which joins by these variables."""
    import socket

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(holder.getsockname()[1])
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)


if __name__ == "__main__":
    main()
