"""Overlapping saves, shared bytes, memory limits and failures; with real workers and arenas."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

import psutil
import pytest
import torch

from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, read_manifest, verify
from bt_lightning.localdir.memory_available import memory_available
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import DOT_DIR
from bt_lightning.snapshot import arena_pool as arenas_module
from bt_lightning.snapshot.arena import Arena


@pytest.fixture
def state(checkpoint_of, counting):
    """A checkpoint of a given step, and the optimizer that makes the next."""
    optimizer = torch.optim.SGD(counting.parameters(), lr=1.0, momentum=0.5)
    for weight in counting.parameters():
        weight.grad = -torch.ones_like(weight)
    optimizer.step()

    def make(step):
        return checkpoint_of(counting, [optimizer], step)

    make.optimizer = optimizer
    make.module = counting
    return make


class Stopped:
    """A worker that is held while the block runs: the disk takes nothing."""

    def __init__(self, saving) -> None:
        self.pid = saving.worker.pid

    def __enter__(self):
        os.kill(self.pid, signal.SIGSTOP)
        return self

    def __exit__(self, *_):
        os.kill(self.pid, signal.SIGCONT)


def ended(saving):
    return {record.checkpoint_id: (record.decision, what) for record, what in saving.outcomes()}


def test_skip_leaves_out_a_save_that_finds_the_disk_busy(saving, state):
    saver = saving([state.optimizer], overlap="skip")
    with Stopped(saver):
        saver.save(state(1), "checkpoint-1")
        state.optimizer.step()
        record = saver.save(state(2), "checkpoint-2")
        assert record.decision == "skipped"
    outcome = ended(saver)
    assert list(outcome) == ["checkpoint-1"]
    state.optimizer.step()
    saver.save(state(3), "checkpoint-3")
    assert isinstance(ended(saver)["checkpoint-3"][1], Manifest)
    assert {c.manifest.step for c in list_committed(saver.root)[0]} == {1, 3}


def test_latest_keeps_the_oldest_that_waits_and_the_newest(saving, state, tmp_path):
    """The worker takes none of them yet; the second gives way to the third."""
    lock = tmp_path / "root" / DOT_DIR / "commit.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        saver = saving([state.optimizer], overlap="latest")
        for step in (1, 2, 3):
            state.optimizer.step()
            record = saver.save(state(step), f"checkpoint-{step}")
            saver.saver.finish_copy()
        assert record.decision == "waited"
    outcome = ended(saver)
    assert outcome["checkpoint-2"] == ("replaced", None)
    assert {c.manifest.step for c in list_committed(saver.root)[0]} == {1, 3}
    for step in (1, 3):
        verify(saver.root / f"checkpoint-{step}")


def test_wait_commits_every_save(saving, state):
    saver = saving([state.optimizer])
    for step in range(1, 9):
        state.optimizer.step()
        saver.save(state(step), f"checkpoint-{step}")
    assert len([what for _, what in ended(saver).values() if isinstance(what, Manifest)]) == 8
    steps = [c.manifest.step for c in list_committed(saver.root)[0]]
    assert steps == [8, 7, 6, 5, 4, 3, 2, 1]


def test_a_second_save_of_the_same_moment_shares_the_bytes(saving, state):
    """`save_last=True`: no second copy, and on disk the tensor files are links."""
    saver = saving([state.optimizer])
    saver.save(state(1), "checkpoint-1", **{"trainer.json": b"one"})
    record = saver.save(state(1), "last", **{"trainer.json": b"another"})
    assert record.snapshot == "shared"
    ended(saver)
    for name, content in (("checkpoint-1", b"one"), ("last", b"another")):
        verify(saver.root / name)
        assert (saver.root / name / "trainer.json").read_bytes() == content
    for file in ("model.safetensors", "optimizer.safetensors"):
        inodes = {(saver.root / name / file).stat().st_ino for name in ("checkpoint-1", "last")}
        assert len(inodes) == 1


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_in_between_shares_nothing(saving, state, counting, fused, checkpoint_of):
    """A fused optimizer tells autograd nothing of what it wrote."""
    optimizer = torch.optim.SGD(counting.parameters(), lr=1.0, fused=fused)
    saver = saving([optimizer])
    for step in (1, 2):
        checkpoint = checkpoint_of(counting, [optimizer], step)
        saver.save(checkpoint, f"checkpoint-{step}")
        wanted = counting.weights[0].detach().clone()
        assert all(r.snapshot != "shared" for r, _ in saver.outcomes())
        assert torch.equal(saver.tensors(f"checkpoint-{step}")["weights.0"], wanted)
        optimizer.step()


def test_another_buffer_or_generator_in_between_is_not_shared(saving, state):
    saver = saving([state.optimizer])
    saver.save(state(1), "checkpoint-1")
    torch.rand(1)
    record = saver.save(state(1), "last")
    assert record.snapshot != "shared"
    rng = torch.get_rng_state()
    ended(saver)
    assert torch.equal(saver.tensors("last")["rng"], rng)


def test_a_state_that_grows_gets_a_larger_arena(saving, checkpoint_of):
    small, large = torch.nn.Linear(10, 10), torch.nn.Linear(1500, 1500)
    saver = saving()
    saver.saver.prepare(1000)
    for name, module in (("checkpoint-1", small), ("checkpoint-2", large), ("checkpoint-3", small)):
        saver.save(checkpoint_of(module, [], 1), name)
        ended(saver)
        assert torch.equal(saver.tensors(name)["weight"], module.weight)


def test_without_room_in_memory_the_caller_is_asked_to_write(saving, state, monkeypatch):
    saver = saving([state.optimizer], arena_memory=1000)
    assert saver.save(state(1), "checkpoint-1").snapshot == "direct"
    assert saver.outcomes() == []
    monkeypatch.setattr(arenas_module, "memory_available", lambda *_: 5_000_000)
    saver.saver._arenas._budget = None
    assert saver.save(state(2), "checkpoint-2").snapshot == "direct"
    assert saver.outcomes() == []


def test_the_memory_that_is_left_is_read_off_the_kernel_and_the_cgroup(tmp_path):
    meminfo, group = tmp_path / "meminfo", tmp_path / "cgroup"
    group.mkdir()
    assert memory_available(meminfo, group) is None
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:  1000 kB\n")
    assert memory_available(meminfo, group) == 1_024_000
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("70\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 20\n")
    assert memory_available(meminfo, group) == 1_024_000
    (group / "memory.max").write_text("100\n")
    assert memory_available(meminfo, group) == 50


def test_a_save_that_the_disk_refuses_is_told_and_the_next_is_whole(saving, state):
    saver = saving([state.optimizer])
    worker = psutil.Process(saver.worker.pid)
    worker.rlimit(psutil.RLIMIT_FSIZE, (10_000, -1))
    saver.save(state(1), "checkpoint-1")
    (_, error) = ended(saver)["checkpoint-1"]
    assert isinstance(error, OSError)
    worker.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, -1))
    saver.save(state(2), "checkpoint-2")
    assert isinstance(ended(saver)["checkpoint-2"][1], Manifest)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_worker_killed_over_a_save_is_replaced_and_the_save_committed(saving, state, moment):
    saver = saving([state.optimizer])
    with Stopped(saver):
        if moment == "before":
            os.kill(saver.worker.pid, signal.SIGKILL)
        saver.save(state(1), "checkpoint-1")
        if moment == "after":
            saver.saver.finish_copy()
            os.kill(saver.worker.pid, signal.SIGKILL)
        wanted = state.module.weights[0].detach().clone()
    assert isinstance(ended(saver)["checkpoint-1"][1], Manifest)
    assert torch.equal(saver.tensors("checkpoint-1")["weights.0"], wanted)
    assert read_manifest(saver.root / "checkpoint-1").generation == 1


def test_an_arena_is_gone_when_it_is_closed():
    """Nothing of it stays in the process, or in /dev/shm."""
    maps = Path(f"/proc/{os.getpid()}/maps")
    arena = Arena(0, 8 * 2**20)
    arena.touch(0, arena.size)
    view = arena.view(4096, torch.zeros(3, 5))
    view.fill_(2)
    assert "bt_lightning arena" in maps.read_text()
    del view
    arena.close()
    assert "bt_lightning arena" not in maps.read_text()
    assert arena.close() is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.bool, torch.complex64])
@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (2, 3, 4)])
def test_a_view_of_an_arena_lies_where_it_was_asked_for(dtype, shape):
    arena = Arena(0, 100_000)
    like = torch.ones(shape, dtype=dtype)
    view = arena.view(4096, like)
    view.copy_(like)
    assert view.shape == like.shape
    assert view.dtype is dtype
    assert view.is_contiguous()
    assert arena.read(4096, like.nbytes) == like.flatten().view(torch.uint8).numpy().tobytes()
    with pytest.raises(ValueError, match="no multiple"):
        arena.view(4097, torch.ones(1, dtype=torch.float64))
    del view
    arena.close()


def test_a_tensor_of_any_dtype_and_strides_is_copied_as_it_is(saving, state):
    """In each of the ways: at once and beside training, whole and in many small ones."""
    from bt_lightning.snapshot.dtypes import SAFETENSORS

    torch.manual_seed(3)
    tensors = {}
    for dtype in SAFETENSORS:
        for size in (0, 1, 7, 400_000):
            raw = torch.randint(0, 2, (size * dtype.itemsize,), dtype=torch.uint8)
            tensors[f"{dtype} {size}"] = raw.view(dtype)
    tensors["strides"] = torch.rand(600, 700).t()[::3]
    tensors["expanded"] = torch.rand(1, 5).expand(4, 5)
    tensors["conjugate"] = torch.rand(700, 500, dtype=torch.complex64).conj()
    tensors["negated"] = torch._neg_view(torch.rand(900, 900))
    tensors["number"] = torch.tensor(3.5)
    saver = saving([state.optimizer])
    saver.save({**state(1), "more": tensors}, "checkpoint-1")
    ended(saver)
    found = saver.tensors("checkpoint-1")
    for name, tensor in tensors.items():
        plain = tensor.resolve_conj().resolve_neg().contiguous()
        back = found[f"more.{name}"]
        assert back.dtype is plain.dtype
        assert back.shape == plain.shape
        assert torch.equal(back.flatten().view(torch.uint8), plain.flatten().view(torch.uint8))


def test_tensors_of_inference_mode_are_saved(saving, state):
    """As a buffer is that validation has made."""
    with torch.inference_mode():
        made = {"large": torch.rand(600, 700), "small": torch.rand(3), "view": torch.rand(4, 5).t()}
    saver = saving([state.optimizer])
    for name in ("checkpoint-1", "checkpoint-2"):
        saver.save({**state(1), "more": made}, name)
        ended(saver)
        found = saver.tensors(name)
        for key, tensor in made.items():
            assert torch.equal(found[f"more.{key}"], tensor)


def test_a_copy_that_fails_is_told_and_no_other_save_shares_it(saving, state, monkeypatch):
    """The bytes are not in the arena, though the copy is over."""
    from bt_lightning.snapshot import host_copies

    def fail(*_):
        raise MemoryError

    saver = saving([state.optimizer])
    with monkeypatch.context() as patch:
        patch.setattr(host_copies, "_move", fail)
        saver.save(state(1), "checkpoint-1")
        saver.save(state(1), "last")
        outcome = ended(saver)
    assert all(isinstance(what, Exception) for _, what in outcome.values())
    assert not list_committed(saver.root)[0]


def test_facts_that_fail_leave_no_arena_in_use(saving, state):
    def broken(_):
        raise RuntimeError

    saver = saving([state.optimizer])
    from bt_lightning.snapshot.state_files import lay_out_files

    with pytest.raises(RuntimeError):
        saver.saver.save(
            "checkpoint-1", lambda memory: lay_out_files(state(1), cache=memory), broken
        )
    saver.save(state(2), "checkpoint-2")
    assert isinstance(ended(saver)["checkpoint-2"][1], Manifest)
