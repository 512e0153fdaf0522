"""Saves of which each rank has a part: arenas, outcomes, records and errors, on every rank."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch

from bt_lightning.errors import (
    CheckpointError,
    PartsMissingError,
    TornSnapshotError,
    UnsupportedStateError,
)
from bt_lightning.localdir.event_log import read_events
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, verify
from bt_lightning.path_layout import DOT_DIR
from bt_lightning.session import parts_of_run
from bt_lightning.session.folder_writer import Folder, FolderWriter
from bt_lightning.session.options import Options
from bt_lightning.session.part_session import PartSession
from bt_lightning.session.parts_of_run import PartsOfRun
from bt_lightning.session.rank_session import RankSession
from bt_lightning.session.save_tracking import SaveListeners, Saves
from bt_lightning.session.session_config import SessionConfig
from bt_lightning.settings import Job
from bt_lightning.sharding.save_part import SaveKey, SavePart
from bt_lightning.snapshot.folder_files import SafetensorsFile
from bt_lightning.snapshot.save_record import SnapshotOptions
from bt_lightning.snapshot.saver import Saver
from bt_lightning.worker.worker_handle import Worker
from bt_lightning.worker_messages import FreedSpace, WorkerConfig

RUN = "c" * 32


class PartFolder(FolderWriter):
    """Lays out what a rank has, as of one structure."""

    fingerprint = "d" * 32
    broken = False
    taken = 0

    def take(self, state, cache=None):
        self.taken += 1
        if self.broken:
            msg = "there is a value that no file can hold"
            raise UnsupportedStateError(msg)
        return replace(super().take(state, cache), fingerprint=self.fingerprint)


class TrainingRank:
    """What a session has on one rank."""

    def __init__(self, root, rank, world_size, config=None, **options):
        self.rank, self.world_size = rank, world_size
        self.worker = Worker(
            WorkerConfig(
                root=str(root),
                prefix="p",
                drain_s=30.0,
                rank=rank,
                **({"gather_s": 5.0, "store_url": None} | (config or {})),
            )
        )
        self.worker.start()
        self.worker.begin(frozenset())
        self.weight = torch.zeros(1000)
        self.parameter = torch.nn.Parameter(torch.zeros(1000 + rank))
        self.optimizer = torch.optim.SGD([self.parameter], lr=1.0)
        self.saver = Saver(
            self.worker, lambda: [self.optimizer], self.pump, SnapshotOptions(**options)
        )
        self.ended, self.removed = [], []
        policy = options.get("snapshot", "auto")
        listeners = SaveListeners(
            committed=lambda _: None,
            remove=lambda manifest: self.removed.append(manifest.checkpoint_id),
            ended=self.ended.append,
            room=lambda *_: FreedSpace(fits=True),
        )
        self.saves = Saves(self.saver, root, policy, listeners)
        self.writer = PartFolder()
        self.number = 0

    def pump(self, timeout_s):
        if timeout_s:
            self.worker.await_event(timeout_s)
        for event in self.worker.poll():
            if hasattr(event, "number"):
                self.saver.handle(event)

    def save(self, step, name=None):
        self.number += 1
        tensors = {f"w{self.rank}": self.parameter, f"b{self.rank}": self.weight + step}
        folder = Folder(
            files={f"shard-{self.rank}.safetensors": SafetensorsFile(tensors)}, step=step
        )
        part = SavePart(
            key=SaveKey(RUN, self.number),
            rank=self.rank,
            world_size=self.world_size,
            fingerprint="",
        )
        self.saves.save(self.writer, folder, name or f"checkpoint-{step}", part)

    def decisions(self):
        return [record.decision for record in self.ended]

    def end(self):
        self.saver.drain(left_s=lambda: 60.0)
        self.saves.collect()

    def close(self):
        self.saver.close()
        self.worker.kill()


@pytest.fixture
def ranks(tmp_path):
    made = []

    def make(count=2, **options):
        root = tmp_path / "root"
        root.mkdir(exist_ok=True)
        made.extend(TrainingRank(root, rank, count, **options) for rank in range(count))
        return made

    yield make
    for rank in made:
        rank.close()


def warned_of_memory():
    return pytest.warns(UserWarning, match="host memory")


def until(predicate, timeout_s=30.0):
    end = time.monotonic() + timeout_s
    while not predicate():
        assert time.monotonic() < end
        threading.Event().wait(0.01)


def save_all(ranks, step):
    """Save on all ranks, and wait for the outcome on each."""
    for rank in ranks:
        rank.save(step)
    for rank in ranks:
        rank.end()


def ids(root):
    return {one.manifest.checkpoint_id for one in list_committed(root).found}


def test_each_rank_saves_and_learns_of_the_whole(ranks, tmp_path):
    each = ranks()
    for step in (1, 2):
        save_all(each, step)
    root = tmp_path / "root"
    assert ids(root) == {"checkpoint-1", "checkpoint-2"}
    assert {entry.path for entry in verify(root / "checkpoint-2").files} == {
        "shard-0.safetensors",
        "shard-1.safetensors",
    }
    for rank in each:
        assert rank.decisions() == ["saved", "saved"]
        assert rank.saves.newest.step == 2
        assert all(record.local_durable_s > 0 for record in rank.ended)
    events = [event["event"] for event in read_events(root)]
    assert sorted(events) == ["durable", "durable", "save", "save"]  # once each, not by rank


def test_a_rank_goes_on_with_its_arena_while_another_is_behind(ranks):
    first, second = ranks()
    for step in (1, 2, 3):
        second.save(step)  # waits for the arena only, of which it has one
        until(lambda: second.pump(0.0) or not second.saver.open.in_arena)
    assert second.saver.pending() == 3
    assert second.saver.pending("checkpoint-2") == 1
    assert second.decisions() == []
    for step in (1, 2, 3):
        first.save(step)
        until(lambda: first.pump(0.0) or not first.saver.open.in_arena)
    for rank in (first, second):
        rank.end()
        assert rank.decisions() == ["saved"] * 3


def test_only_rank_0_raises_what_another_rank_lacks(ranks, tmp_path):
    first, second = ranks(config={"gather_s": 1.0})
    for rank in (first, second):
        rank.writer.fingerprint = str(rank.rank) * 32
        rank.save(1)
    assert second.saves.taken_step == 1
    second.end()
    assert second.decisions() == ["uncommitted"]
    assert second.saves.taken_step is None, "its step is to be saved again"
    with pytest.raises(PartsMissingError, match=r"rank 0 on .* and rank 1 on .* differ"):
        first.end()
    assert first.decisions() == ["failed"]
    assert first.saves.taken_step is None
    assert ids(tmp_path / "root") == set()


def test_a_sharded_save_that_failed_is_raised_whatever_the_user_makes_of_uploads():
    def fail():
        msg = "rank 1 has no part"
        raise PartsMissingError(msg)

    with pytest.raises(PartsMissingError):
        RankSession(Options.of(on_error="warn")).report(fail)


@pytest.mark.parametrize("memory", [None, 1])
def test_parts_of_different_steps_never_make_a_checkpoint(ranks, tmp_path, memory):
    """As of ranks that count their saves differently; from an arena, or written directly."""
    first, second = ranks(arena_memory=memory)
    for rank, step in ((second, 20), (first, 10)):
        with warned_of_memory() if memory else contextlib.nullcontext():
            rank.save(step)
    second.end()
    with pytest.raises(PartsMissingError, match=r"states that differ in step"):
        first.end()
    assert ids(tmp_path / "root") == set()


def test_a_state_that_cannot_be_laid_out_is_missing_for_all(ranks):
    first, second = ranks()
    second.writer.broken = True
    with pytest.raises(UnsupportedStateError):
        second.save(1)
    first.save(1)
    with pytest.raises(CheckpointError, match=r"rank 1 on .* has no part of it: Unsupported"):
        first.end()
    second.writer.broken = False
    save_all((first, second), 2)
    assert first.saves.newest.step == 2


def test_a_torn_copy_of_one_rank_makes_all_copy_at_once(ranks):
    first, second = ranks()
    hold = threading.Event()
    second.saver._finisher.beside_training(lambda: hold.wait(20))
    for rank in (first, second):
        rank.save(1)
    with torch.no_grad():
        second.parameter.add_(1)  # behind the back of the guard
    hold.set()
    for rank in (second, first):
        with pytest.warns(UserWarning, match="given up|was not saved"):
            rank.end()
        assert rank.decisions() == ["torn"]
        assert not rank.saver.lazy
    save_all((first, second), 2)
    for rank in (first, second):
        assert rank.decisions() == ["torn", "saved"]


def test_a_torn_copy_is_told_whatever_the_training_of_that_rank_does(ranks):
    """As in a long validation: rank 0 would give up on it, and raise."""
    first, second = ranks(config={"gather_s": 30.0})
    hold = threading.Event()
    second.saver._finisher.beside_training(lambda: hold.wait(20))
    for rank in (first, second):
        rank.save(1)
    with torch.no_grad():
        second.parameter.add_(1)
    hold.set()
    with pytest.warns(UserWarning, match="rank 1"):
        first.end()
    assert first.decisions() == ["torn"]


def test_a_copy_that_fails_on_one_rank_is_raised_on_rank_0(ranks):
    first, second = ranks()
    hold = threading.Event()
    second.saver._finisher.beside_training(lambda: hold.wait(20))
    for rank in (first, second):
        rank.save(1)

    def fail(batches):
        msg = "the device is lost"
        raise RuntimeError(msg)

    second.saver._copier.run = fail
    hold.set()
    with pytest.raises(PartsMissingError, match=r"rank 1 on .*: RuntimeError: the device is lost"):
        first.end()
    second.end()
    assert second.decisions() == ["failed"]


def test_a_torn_copy_is_raised_on_rank_0_where_the_user_wants_lazy_copies(ranks):
    first, second = ranks(snapshot="lazy")
    hold = threading.Event()
    second.saver._finisher.beside_training(lambda: hold.wait(20))
    for rank in (first, second):
        rank.save(1)
    with torch.no_grad():
        second.parameter.add_(1)
    hold.set()
    second.end()
    with pytest.raises(TornSnapshotError, match="rank 1"):
        first.end()


def test_rank_0_skips_for_all(ranks):
    first, second = ranks(overlap="skip")
    os.kill(first.worker.pid, signal.SIGSTOP)
    first.save(1)
    first.saver.state_may_change()
    first.save(2)  # its arena is taken: skipped
    assert first.decisions() == ["skipped"]
    assert first.writer.taken == 2, "others may have to agree with it on what it skips"
    os.kill(first.worker.pid, signal.SIGCONT)
    second.save(1)
    until(lambda: second.pump(0.0) or not second.saver.open.in_arena)
    second.save(2)
    for rank in (first, second):
        rank.end()
    assert {record.step: record.decision for record in second.ended} == {1: "saved", 2: "replaced"}
    assert first.decisions() == ["skipped", "saved"]


def test_a_removal_is_asked_for_while_parts_are_gathered(ranks, tmp_path):
    first, second = ranks()
    first.save(1)
    until(lambda: first.pump(0.0) or not first.saver.open.in_arena)
    assert first.saves.remove_when_committed("checkpoint-1")
    second.save(1)
    for rank in (first, second):
        rank.end()
    save_all((first, second), 2)
    assert first.removed == ["checkpoint-1"]
    until(lambda: ids(tmp_path / "root") == {"checkpoint-2"})


def test_without_memory_for_an_arena_each_rank_writes_its_part_itself(ranks, tmp_path):
    first, second = ranks(arena_memory=1)
    for step in (1, 2):
        for rank in (second, first):
            with warned_of_memory() if step == 1 else contextlib.nullcontext():
                rank.save(step)
        assert second.saver.pending() == 1
        for rank in (first, second):
            rank.end()
    for rank in (first, second):
        assert [record.snapshot for record in rank.ended] == ["direct", "direct"]
        assert all(record.call_ms > 0 for record in rank.ended)
        assert rank.decisions() == ["saved", "saved"]
    assert len(verify(tmp_path / "root/checkpoint-2").files) == 2


def config_of_another_rank(root, meet="directory", store_url=None):
    parts = PartsOfRun(rank=1, hosts=("one", "other"), meet=meet, run=RUN)
    return SessionConfig(
        root=root,
        load_dir=None,
        store_url=store_url,
        upload_mb_s=None,
        content_md5=False,
        job=Job(project="p", job="j", node_rank=0),
        resume="auto",
        weights_only=None,
        drain_s=5.0,
        parts=parts,
    )


@pytest.fixture
def another_rank(tmp_path):
    """The root, rank 0, the session of rank 1, and its saves; rank 1 has no memory for an arena."""
    root = tmp_path / "root"
    root.mkdir()
    config = config_of_another_rank(root)
    parts = config.parts
    session = PartSession(config, "p")
    first = TrainingRank(root, 0, 2)
    saves = session.snapshots(
        list, SnapshotOptions(arena_memory=1), lambda _: None, pinned_for=None
    )

    def save(step):
        folder = Folder(files={"mine": SafetensorsFile({"w": torch.ones(9)})}, step=step)
        saves.save(PartFolder(), folder, f"checkpoint-{step}", parts.next())

    yield root, first, session, save
    session.close()
    first.close()


def test_a_session_of_another_rank_writes_its_part_without_memory_as_well(another_rank):
    """Through `PartSession`, whose worker looks whether the disk has room."""
    root, first, session, save = another_rank
    with warned_of_memory():
        save(1)
    first.save(1)
    first.end()
    session.finish()
    assert {one.path for one in verify(root / "checkpoint-1").files} > {"mine"}


def test_a_rank_whose_direct_write_fails_goes_on_and_rank_0_raises(another_rank):
    """One that ended alone would leave the others in a collective."""
    root, first, session, save = another_rank
    in_the_way = root / DOT_DIR / "gather" / SaveKey(RUN, 1).folder / "files/mine"
    in_the_way.mkdir(parents=True)
    with warned_of_memory():
        save(1)
    assert session.saves.taken_step is None
    first.save(1)
    with pytest.raises(PartsMissingError, match=r"rank 1 on .* has no part of it"):
        first.end()
    save(2)
    first.save(2)
    first.end()
    session.finish()
    assert ids(root) == {"checkpoint-2"}


def test_one_rank_without_memory_does_not_hold_up_the_others(ranks, tmp_path):
    first, second = ranks()
    second.saver._arenas._budget = 1
    first.save(1)
    with warned_of_memory():
        second.save(1)
    for rank in (first, second):
        rank.end()
    assert ids(tmp_path / "root") == {"checkpoint-1"}


def test_a_killed_worker_is_followed_by_one_that_waits_for_the_others(ranks):
    first, second = ranks()
    second.save(1)
    until(lambda: second.pump(0.0) or not second.saver.open.in_arena)
    os.kill(second.worker.pid, signal.SIGKILL)
    second.save(2)
    until(lambda: second.pump(0.0) or not second.saver.open.in_arena)
    for step in (1, 2):
        first.save(step)
    for rank in (first, second):
        rank.end()
        assert [record.is_kept for record in rank.ended] == [True, True]


@pytest.mark.parametrize("meet", ["directory", "store"])
def test_a_failed_run_leaves_no_part_where_no_other_rank_has_it(tmp_path, monkeypatch, meet):
    """Rank 0 is slower than the seconds for which a failed run waits for others."""
    monkeypatch.setattr(parts_of_run, "_PATIENCE_S", 0.2)
    url = (tmp_path / "store").as_uri()
    roots = [tmp_path / ("root" if meet == "directory" else f"node-{rank}") for rank in range(2)]
    for root in roots:
        root.mkdir(exist_ok=True)
    config = config_of_another_rank(roots[1], meet, url if meet == "store" else None)
    session = PartSession(replace(config, drain_s=30.0), "p")
    there = {"gather": meet, "store_url": config.store_url, "gather_s": 10.0}
    first = TrainingRank(roots[0], 0, 2, config=there)
    saves = session.snapshots(list, SnapshotOptions(), lambda _: None, pinned_for=None)
    with contextlib.closing(first), contextlib.closing(session):
        folder = Folder(files={"mine": SafetensorsFile({"w": torch.ones(9)})}, step=1)
        saves.save(PartFolder(), folder, "checkpoint-1", config.parts.next())
        ending = threading.Thread(target=session.abandon)
        ending.start()
        ending.join(1.0)
        first.save(1)
        first.end()
        ending.join(60)
        assert first.decisions() == ["saved"]


@pytest.mark.slow
def test_a_failed_run_writes_what_is_in_its_arenas(tmp_path, monkeypatch):
    """The disk is slower than the seconds for which a failed run waits for other ranks."""
    monkeypatch.setattr(parts_of_run, "_PATIENCE_S", 0.0)
    session = PartSession(replace(config_of_another_rank(tmp_path), drain_s=60.0), "p")
    saves = session.snapshots(list, SnapshotOptions(), lambda _: None, pinned_for=None)
    parts = PartsOfRun(rank=1, hosts=("one", "other"), meet="directory", run=RUN)
    folder = Folder(files={"mine": SafetensorsFile({"w": torch.ones(9)})}, step=1)
    with contextlib.closing(session):
        os.kill(session.worker_pid, signal.SIGSTOP)
        saves.save(PartFolder(), folder, "checkpoint-1", parts.next())
        goes_on = threading.Timer(13.0, os.kill, [session.worker_pid, signal.SIGCONT])
        goes_on.start()
        session.abandon()
        goes_on.join()
    record = tmp_path / DOT_DIR / "gather" / SaveKey(RUN, 1).folder / "part-00001.json"
    assert record.exists()
