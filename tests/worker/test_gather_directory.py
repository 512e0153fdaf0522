"""A gather is finished by another process from wherever its committer was killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from bt_lightning.errors import CheckpointCorruptError, InvalidSettingError
from bt_lightning.localdir import atomic_directory, fsync, gather_directory, gather_locks
from bt_lightning.localdir.atomic_directory import gathers, sweep
from bt_lightning.localdir.end_gathers import end_gathers
from bt_lightning.localdir.gather_checks import manifest_of_gather
from bt_lightning.localdir.gather_directory import GatherDirectory
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, verify
from bt_lightning.localdir.write_part_files import write_part_files
from bt_lightning.manifest import ManifestFacts
from bt_lightning.sharding.gather_verdict import GatherVerdict, WholeGather, judge_parts
from bt_lightning.sharding.save_part import PartRecord, SaveHead, SaveKey, SavePart

RUN = "e" * 32
AT = ("verdict", "manifest", "renamed", "swept")


def part(number, rank, run=RUN, world_size=2, fingerprint="f" * 32):
    return SavePart(
        key=SaveKey(run, number), rank=rank, world_size=world_size, fingerprint=fingerprint
    )


def write_parts(root, number, name="last", ranks=(0, 1), run=RUN):
    for rank in ranks:
        facts = ManifestFacts(
            step=number, epoch=0, created_at=f"2030-01-01T00:00:{number:02}+00:00"
        )
        head = SaveHead(checkpoint_id=name, after=0, facts=facts) if rank == 0 else None
        files = {f"sub/shard-{rank}": lambda rank=rank: [b"%d of %d;" % (rank, number) * 100]}
        write_part_files(root, part(number, rank, run), files, head)
    return part(number, 0, run).key


def commit(root, key):
    place = GatherDirectory(root, 0)
    return place.commit(key, place.records(key))


def commit_and_die(root, key, at):
    """Commit in this process, and kill it at a moment of that."""

    def die(*_args, **_options):
        os.kill(os.getpid(), signal.SIGKILL)

    if at == "verdict":
        gather_directory.GatherDirectory._finish = die
    if at == "manifest":
        gather_directory.publish_directory = die
    if at == "renamed":
        atomic_directory.sync_directory = lambda path: die() if path == root else None
    if at == "swept":
        gather_directory.discard = lambda path: die() if key.folder in str(path) else None
    commit(root, key)


def killed(root, key, at):
    process = multiprocessing.get_context("fork").Process(
        target=commit_and_die, args=(root, key, at)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def found(root):
    return {one.manifest.checkpoint_id: one.manifest for one in list_committed(root).found}


@pytest.mark.parametrize("at", AT)
@pytest.mark.parametrize("older", [False, True])
def test_who_comes_next_finishes_what_was_decided(tmp_path, at, older):
    if older:
        commit(tmp_path, write_parts(tmp_path, 1))
    key = write_parts(tmp_path, 2)
    killed(tmp_path, key, at)
    place = GatherDirectory(tmp_path, 1)
    outcome = place.outcome(key)
    assert (outcome is None) == (at != "swept")
    assert ("last" in found(tmp_path)) == (older or at in {"renamed", "swept"})
    verdict = place.commit(key, place.records(key))
    assert place.outcome(key) == verdict
    assert verify(tmp_path / "last") == verdict.manifest
    assert verdict.manifest.generation == 1 + older
    assert (tmp_path / "last/sub/shard-1").read_bytes().startswith(b"1 of 2;")


@pytest.mark.parametrize("at", AT)
def test_a_new_run_finishes_what_was_decided(tmp_path, at):
    commit(tmp_path, write_parts(tmp_path, 1))
    key = write_parts(tmp_path, 2)
    killed(tmp_path, key, at)
    sweep(tmp_path)
    end_gathers(tmp_path, 5.0)
    assert verify(tmp_path / "last").step == 2
    assert GatherDirectory(tmp_path, 0).outcome(key).manifest.step == 2
    end_gathers(tmp_path, 5.0)
    assert list(gathers(tmp_path).iterdir()) == []


@pytest.mark.parametrize("at", ["verdict", "manifest"])
def test_a_later_save_comes_behind_an_earlier_one_that_was_decided(tmp_path, at):
    first = write_parts(tmp_path, 1)
    killed(tmp_path, first, at)
    verdict = commit(tmp_path, write_parts(tmp_path, 2))
    assert verdict.manifest.generation == 2
    assert verify(tmp_path / "last").step == 2


def test_without_an_exchange_of_names_it_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("bt_lightning.localdir.rename_noreplace.renameat2", lambda *_: False)
    for number in (1, 2, 3):
        commit(tmp_path, write_parts(tmp_path, number))
        assert verify(tmp_path / "last").generation == number


def test_what_was_given_up_is_never_committed(tmp_path):
    key = write_parts(tmp_path, 1, ranks=(0,))
    place = GatherDirectory(tmp_path, 0)
    place.give_up(key, GatherVerdict(why="it is late", cause="late"))
    write_parts(tmp_path, 1, ranks=(1,))
    late = GatherDirectory(tmp_path, 1)
    assert late.commit(key, {}).why == "it is late"
    assert late.outcome(key).cause == "late"
    assert found(tmp_path) == {}


def test_what_was_committed_is_never_given_up(tmp_path):
    key = write_parts(tmp_path, 1)
    verdict = commit(tmp_path, key)
    assert (
        GatherDirectory(tmp_path, 1).give_up(key, GatherVerdict(why="no", cause="late")) == verdict
    )
    assert verify(tmp_path / "last") == verdict.manifest


def test_a_file_that_is_not_there_keeps_it_from_being_decided(tmp_path):
    key = write_parts(tmp_path, 1)
    (gathers(tmp_path) / key.folder / "files/sub/shard-1").unlink()
    with pytest.raises(CheckpointCorruptError, match="shard-1 is missing"):
        commit(tmp_path, key)
    assert GatherDirectory(tmp_path, 1).outcome(key) is None


def test_runs_do_not_mix(tmp_path):
    other = "1" * 32
    write_parts(tmp_path, 1, ranks=(0,))
    key = write_parts(tmp_path, 1, ranks=(1,), run=other)
    place = GatherDirectory(tmp_path, 1)
    assert judge_parts(place.records(key), part(1, 1, other)) is None
    write_parts(tmp_path, 1, ranks=(0,), run=other)
    assert judge_parts(place.records(key), part(1, 1, other)) == WholeGather()
    place.commit(key, place.records(key))
    end_gathers(tmp_path, 1.0)
    assert verify(tmp_path / "last").step == 1


def test_a_save_that_was_ended_cannot_be_made_by_workers_that_are_told_of_it_late(tmp_path):
    key = write_parts(tmp_path, 1, ranks=(0,))
    end_gathers(tmp_path, 1.0)
    write_parts(tmp_path, 1)
    place = GatherDirectory(tmp_path, 1)
    assert place.commit(key, place.records(key)).cause == "dropped"
    assert found(tmp_path) == {}


def test_a_worker_that_joins_while_a_gather_is_deleted_loses_no_file_of_a_commit(
    tmp_path, monkeypatch
):
    key = write_parts(tmp_path, 1)
    place = GatherDirectory(tmp_path, 0)
    place.commit(key, place.records(key))
    deleted = atomic_directory.discard

    def join_first(path):
        """Another worker writes and commits before the first file is deleted."""
        write_parts(tmp_path, 1, "again")
        GatherDirectory(tmp_path, 1).commit(key, GatherDirectory(tmp_path, 1).records(key))
        monkeypatch.undo()
        deleted(path)

    monkeypatch.setattr(atomic_directory, "discard", join_first)
    place.delete(key)
    for one in found(tmp_path):
        verify(tmp_path / one)


@pytest.mark.parametrize("told", ["nothing", "begin", "part", "all"])
@pytest.mark.parametrize("next_name", ["last", "other"])
def test_a_worker_that_is_told_of_a_save_behind_its_commit_changes_nothing(
    tmp_path, told, next_name
):
    """Of a worker that was killed between its record and its report, the next one is told again."""
    key = write_parts(tmp_path, 1)
    verdict = commit(tmp_path, key)
    late = GatherDirectory(tmp_path, 1)
    if told == "begin":
        late.begin(part(1, 1))
    if told in {"part", "all"}:
        write_parts(tmp_path, 1, ranks=(1,) if told == "part" else (0, 1))
    assert late.outcome(key) == verdict
    assert late.commit(key, late.records(key)) == verdict
    assert late.give_up(key, GatherVerdict(why="no", cause="late")) == verdict
    assert verify(tmp_path / "last") == verdict.manifest
    commit(tmp_path, write_parts(tmp_path, 2, next_name))
    late = GatherDirectory(tmp_path, 1)
    assert late.commit(key, late.records(key)) == verdict
    commit(tmp_path, write_parts(tmp_path, 3, "third"))
    end_gathers(tmp_path, 1.0)
    each = found(tmp_path)
    assert each.keys() == {"last", next_name, "third"}
    for name in each:
        assert len(verify(tmp_path / name).files) == 2
    assert each["last"].step == (2 if next_name == "last" else 1)


def test_a_part_again_after_a_kill_never_writes_through_a_link(tmp_path):
    """A worker may have linked files of the last checkpoint before it was killed."""
    commit(tmp_path, write_parts(tmp_path, 1, "first"))
    place = GatherDirectory(tmp_path, 1)
    folder = place.begin(part(2, 1))
    (folder / "sub").mkdir()
    os.link(tmp_path / "first/sub/shard-1", folder / "sub/shard-1")
    place.end(part(2, 1).key)
    write_parts(tmp_path, 2, "second")
    commit(tmp_path, part(2, 1).key)
    verify(tmp_path / "first")
    verify(tmp_path / "second")


def test_a_directory_of_others_files_is_no_gather(tmp_path):
    for name in ("notes", "0" * 32 + "-x", "0" * 32):
        (gathers(tmp_path) / name).mkdir(parents=True)
    (gathers(tmp_path) / ("0" * 32 + "-1")).write_text("a file")
    end_gathers(tmp_path, 1.0)
    assert (gathers(tmp_path) / "notes").is_dir()


def test_a_damaged_outcome_is_left_alone(tmp_path, caplog):
    key = write_parts(tmp_path, 1)
    (gathers(tmp_path) / key.folder / "outcome.json").write_text("{")
    end_gathers(tmp_path, 1.0)
    assert "stay" in caplog.text
    assert found(tmp_path) == {}


def test_a_damaged_record_commits_nothing(tmp_path):
    key = write_parts(tmp_path, 1)
    record = gathers(tmp_path) / key.folder / "part-00001.json"
    record.write_bytes(record.read_bytes().replace(b'"size"', b'"length"'))
    with pytest.raises(CheckpointCorruptError):
        GatherDirectory(tmp_path, 0).records(key)
    end_gathers(tmp_path, 1.0)  # says so, and goes on
    assert found(tmp_path) == {}


def files_of(root, key):
    home = gathers(root) / key.folder
    return [path for path in (home / "files").rglob("*") if path.is_file()] + [
        *home.glob("part-*.json")
    ]


def test_what_a_slow_rank_writes_behind_the_end_of_its_save_goes(tmp_path):
    key = write_parts(tmp_path, 1, ranks=(0,))
    leader = GatherDirectory(tmp_path, 0)
    leader.give_up(key, GatherVerdict(why="it is late", cause="late"))
    leader.end(key)
    slow = GatherDirectory(tmp_path, 1)
    (slow.begin(part(1, 1)) / "shard-1").write_bytes(b"late")
    slow.put(PartRecord(part=part(1, 1), host="h", missing="it is full", cause="full"))
    assert len(files_of(tmp_path, key)) == 2
    assert slow.outcome(key).why == "it is late"
    slow.end(key)
    assert files_of(tmp_path, key) == []


@pytest.mark.parametrize("who", ["rank", "run"])
def test_what_was_given_up_goes_also_if_its_leader_was_killed_then(tmp_path, who):
    key = write_parts(tmp_path, 1, ranks=(1,))
    leader = GatherDirectory(tmp_path, 0)
    leader._decide(key, GatherVerdict(why="it is late", cause="late"))
    if who == "rank":
        GatherDirectory(tmp_path, 1).end(key)
    else:
        end_gathers(tmp_path, 0.0)
    assert files_of(tmp_path, key) == []
    assert GatherDirectory(tmp_path, 1).outcome(key).why == "it is late"


@pytest.mark.parametrize("at", ["verdict", "manifest"])
def test_who_leaves_a_commit_that_is_not_done_deletes_nothing_of_it(tmp_path, at):
    key = write_parts(tmp_path, 1)
    killed(tmp_path, key, at)
    GatherDirectory(tmp_path, 1).end(key)
    assert len(list((gathers(tmp_path) / key.folder / "files/sub").iterdir())) == 2
    end_gathers(tmp_path, 0.0)
    assert verify(tmp_path / "last").step == 1


def test_two_processes_never_write_the_part_of_one_rank(tmp_path, monkeypatch):
    monkeypatch.setattr(gather_locks, "_LOCK_S", 0.1)
    first, second = (GatherDirectory(tmp_path, 1) for _ in range(2))
    first.begin(part(1, 1))
    for _ in range(2):
        with pytest.raises(TimeoutError, match="another process of this rank"):
            second.begin(part(1, 1))
    first.end(part(1, 1).key)
    second.begin(part(1, 1))
    second.end(part(1, 1).key)


@pytest.mark.parametrize("number", [1, 20])
def test_a_save_that_never_gets_its_name_keeps_no_other_from_being_committed(tmp_path, number):
    stuck = write_parts(tmp_path, number, "best/one")
    killed(tmp_path, stuck, "manifest")
    (tmp_path / "best").rmdir()
    (tmp_path / "best").write_text("a file has the name by now")
    for later in range(number + 1, number + 12):
        key = write_parts(tmp_path, later)
        assert commit(tmp_path, key).manifest.generation == later - number
        GatherDirectory(tmp_path, 0).end(key)
    assert verify(tmp_path / "last").step == number + 11
    (tmp_path / "best").unlink()
    commit(tmp_path, write_parts(tmp_path, number + 12))
    assert verify(tmp_path / "best/one").step == number


@pytest.mark.parametrize("name", ["best/one", "best/one/more", "best"])
def test_a_save_waits_for_one_of_its_own_place_that_was_decided_before(tmp_path, name):
    stuck = write_parts(tmp_path, 1, "best/one")
    killed(tmp_path, stuck, "manifest")
    (tmp_path / "best").rmdir()
    (tmp_path / "best").write_text("a file has the name by now")
    key = write_parts(tmp_path, 2, name)
    with pytest.raises(OSError, match="best"):
        commit(tmp_path, key)
    assert GatherDirectory(tmp_path, 1).outcome(key) is None


def test_a_damaged_verdict_keeps_no_later_save_from_being_committed(tmp_path):
    damaged = write_parts(tmp_path, 1, "one")
    (gathers(tmp_path) / damaged.folder / "outcome.json").write_text("{")
    commit(tmp_path, write_parts(tmp_path, 2, "two"))
    assert found(tmp_path).keys() == {"two"}


def test_nothing_is_decided_that_cannot_get_its_name(tmp_path):
    """A rename reaches no other volume: here a gather would be on that of the processes."""
    place = GatherDirectory(tmp_path, 0)
    records = place.records(write_parts(tmp_path, 1, "best/one"))
    with pytest.raises(InvalidSettingError, match="is on another volume than /proc/self"):
        manifest_of_gather(tmp_path, Path("/proc/self"), records)


def test_every_folder_of_a_part_is_durable_before_its_record(tmp_path, monkeypatch):
    synced, sync, put = [], fsync.sync_directory, GatherDirectory.put

    def record(place, one):
        synced.append(one)
        put(place, one)

    monkeypatch.setattr(fsync, "sync_directory", lambda path: synced.append(path) or sync(path))
    monkeypatch.setattr(GatherDirectory, "put", record)
    files = {"a/b/c": lambda: [b"deep"], "d": lambda: [b"flat"]}
    written = write_part_files(tmp_path, part(1, 1), files, None)
    built = gathers(tmp_path) / part(1, 1).key.folder / "files"
    before = synced[: synced.index(written)]
    assert {built, built / "a", built / "a/b"} <= set(before)
