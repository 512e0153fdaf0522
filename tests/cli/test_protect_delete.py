"""`protect_stored`, `unprotect`, `delete`, `jobs`, `projects`: what goes, what stays, and kills."""

from __future__ import annotations

import itertools
import json
import os
import pty
import subprocess
import sys
import time

import pytest

from bt_lightning.job_record import Attempt, JobRecord
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, verify
from bt_lightning.manage.delete import delete_items, delete_job, finish_deletions
from bt_lightning.manage.find_target import find_jobs
from bt_lightning.manage.job_checkpoints import StoreCheckpoints
from bt_lightning.manage.trash import restore, trash_items, trashed
from bt_lightning.path_layout import (
    DELETING,
    MANIFEST,
    MARKER,
    PROTECTION,
    job_prefix,
    jobs_prefix,
    removals_folder,
)
from bt_lightning.protection_record import Protection
from bt_lightning.removal_requester import Requester
from bt_lightning.settings import Job, Settings
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.catalog.job_records import write_record
from bt_lightning.store.catalog.protection import protect_stored
from bt_lightning.store.catalog.removal_requests import requested_stored_removals
from bt_lightning.store.lease import Lease
from bt_lightning.store.transfer.publish import publish
from bt_lightning.worker.publisher_tasks import PublisherTasks

PREFIX = job_prefix("p", "j", 0)


@pytest.fixture
def store(tmp_path, make):
    """The job `j` of the project `p` with four checkpoints, and `k` with one."""
    store = LocalStore(tmp_path / "store")
    for step in (1, 2, 3, 4):
        publish(store, PREFIX, make(tmp_path / "source", f"c-{step}", step))
    publish(store, job_prefix("p", "k", 0), make(tmp_path / "other", "c-9", 9))
    return store


def left(cli, store, job="j"):
    place = ("--store", store.name, "--project", "p", "--job-id", job)
    if not list(store.list(jobs_prefix("p", job))):
        cli("checkpoints", "list", *place, code=10)
        return []
    done = cli("checkpoints", "list", *place, "-ojson")
    return [row["checkpoint_id"] for row in json.loads(done.stdout)["checkpoints"]]


def at(store):
    return ("--store", store.name, "--project", "p", "--job-id", "j")


def test_protect_says_who_and_why_and_keeps_from_deletion(cli, store):
    cli("checkpoints", "protect", "c-1", "c-3", *at(store), "--why", "paper", "--by", "ada")
    said = json.loads(cli("checkpoints", "show", "c-1", *at(store), "-ojson").stdout)
    assert (said["protection"]["by"], said["protection"]["why"]) == ("ada", "paper")
    done = cli("checkpoints", "delete", "c-1", "c-2", *at(store), "--yes", "-ojson", code=30)
    assert json.loads(done.stdout) == {
        "deleted": ["c-2"],
        "asked": [],
        "kept_checkpoints": ["c-1"],
        "dry_run": False,
    }
    assert left(cli, store) == ["c-1", "c-3", "c-4"]
    cli("checkpoints", "unprotect", "c-1", *at(store))
    cli("checkpoints", "delete", "c-1", *at(store), "--yes")
    assert left(cli, store) == ["c-3", "c-4"]


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (("--keep-last", "2"), ["c-3", "c-4"]),
        (("--keep-best", "val_loss", "--mode", "max"), ["c-1"]),
        (("--keep-best", "val_loss", "--keep-last", "0"), ["c-4"]),
        (("--keep-best", "val_loss", "--mode", "max", "--keep-last", "1"), ["c-1", "c-4"]),
    ],
)
def test_a_rule_says_what_stays(cli, store, rule, kept):
    before = left(cli, store)
    dry = cli("checkpoints", "delete", *rule, *at(store), "--dry-run").stdout
    assert dry.count("would be deleted") == 4 - len(kept)
    assert left(cli, store) == before
    cli("checkpoints", "delete", *rule, *at(store), "--yes")
    assert left(cli, store) == kept


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ((), 2),
        (("c-1", "--keep-last", "1"), 2),
        (("--keep-best", "nothing", "--yes"), 2),
        (("nothing", "--yes"), 10),
        (("c-1",), 2),  # nobody can be asked
    ],
)
def test_nothing_goes_unless_it_is_clear_what(cli, store, args, code):
    cli("checkpoints", "delete", *args, *at(store), code=code)
    assert len(left(cli, store)) == 4


def on_terminal(*args, answer):
    """Run a command with a terminal for its input, on which somebody types `answer`."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "wb", buffering=0) as keyboard:
        keyboard.write(answer.encode() + b"\n")
        done = subprocess.run(
            [sys.executable, "-m", "bt_lightning", *args],
            stdin=theirs,
            capture_output=True,
            text=True,
            check=False,
        )
        os.close(theirs)
    return done


def test_what_is_typed_decides(store, cli):
    said = on_terminal("checkpoints", "delete", "c-1", *at(store), answer="y")
    assert said.returncode == 1
    assert "Nothing was deleted" in said.stderr
    said = on_terminal("jobs", "delete", "j", "--store", store.name, answer="k")
    assert said.returncode == 1
    assert len(left(cli, store)) == 4
    said = on_terminal("checkpoints", "delete", "c-1", *at(store), answer="yes")
    assert said.returncode == 0, said.stderr
    assert "c-1: deleted" in said.stdout
    said = on_terminal("jobs", "delete", "j", "--store", store.name, answer="j")
    assert said.returncode == 0, said.stderr
    assert not list(store.list(jobs_prefix("p", "j")))


def test_all_generations_of_an_id_go_at_once(cli, store, tmp_path, make):
    publish(store, PREFIX, make(tmp_path / "again", "c-2", 5))
    assert store.read(f"{PREFIX}/c-2@2/{MANIFEST}")
    cli("checkpoints", "delete", "c-2", *at(store), "--yes")
    assert left(cli, store) == ["c-1", "c-3", "c-4"]
    assert not list(store.list(f"{PREFIX}/c-2"))


def test_a_running_job_is_asked_and_its_worker_deletes(cli, store, tmp_path, make):
    root = tmp_path / "ck"
    make(root, "a", 1)
    make(root, "b", 2)
    duties = PublisherTasks(root, store, job_prefix("p", "live", 0), ())
    while duties.publish_next():
        pass
    done = cli("checkpoints", "delete", "bt://p@live/a", "--store", store.name, "--yes", "-ojson")
    assert json.loads(done.stdout)["asked"] == ["a"]
    assert sorted(left(cli, store, "live")) == ["a", "b"]
    cli("jobs", "delete", "live", "--store", store.name, "--yes", code=29)
    duties.delete_stored()
    duties.delete_local()
    duties.leave()
    assert left(cli, store, "live") == ["b"]
    assert [found.path.name for found in list_committed(root)[0]] == ["b"]


def test_a_restart_does_not_publish_anew_what_was_deleted(cli, store, tmp_path):
    cli("checkpoints", "delete", "c-2", *at(store), "--yes")
    duties = PublisherTasks(tmp_path / "source", store, PREFIX, ())
    duties.delete_stored()
    duties.delete_local()
    assert duties.publish_next() is None
    duties.leave()
    assert left(cli, store) == ["c-1", "c-3", "c-4"]
    assert requested_stored_removals(store, PREFIX).keys() == frozenset()


def test_a_copy_of_what_was_deleted_stays(cli, store, tmp_path):
    cli("checkpoints", "delete", "c-2", *at(store), "--yes")
    args = ("c-2", "--dir", tmp_path / "source", "--to", store.name, "--to-project", "p")
    cli("checkpoints", "copy", *args, "--to-job-id", "j")
    assert requested_stored_removals(store, PREFIX).keys() == frozenset()


def test_delete_from_a_directory_and_from_both(cli, store, tmp_path, make):
    root = tmp_path / "ck"
    for step in (1, 2):
        made = make(root, f"d-{step}", step)
    publish(store, Job.named(Settings(), str(root)).prefix, made)
    cli("checkpoints", "protect", "d-1", "--dir", root)
    cli("checkpoints", "delete", "d-1", "--dir", root, "--yes", code=30)
    assert (root / "d-1" / MANIFEST).exists()
    cli("checkpoints", "delete", "d-2", "--dir", root, "--store", store.name, "--yes")
    assert [path.name for path in root.iterdir() if not path.name.startswith(".")] == ["d-1"]
    cli("checkpoints", "unprotect", "d-1", "--dir", root)
    cli("checkpoints", "delete", "d-1", "--dir", root, "--yes")
    assert not list(root.iterdir())


class Killed(BaseException):
    pass


class Mortal:
    """A store whose process dies before its call number `last`; of a deletion, before each key."""

    def __init__(self, inner, last):
        self._inner, self._left = inner, last
        self.name = inner.name

    def _live(self):
        self._left -= 1
        if self._left < 0:
            raise Killed

    def delete(self, keys):
        for key in keys:
            self._live()
            self._inner.delete([key])

    def __getattr__(self, name):
        call = getattr(self._inner, name)

        def mortal(*args):
            self._live()
            return call(*args)

        return mortal


@pytest.mark.parametrize("what", ["two", "job"])
def test_a_deletion_killed_at_any_request_leaves_whole_ones_and_is_finished_by_the_next(
    tmp_path, make, monkeypatch, what
):
    monkeypatch.setattr("bt_lightning.manage.download_copy.Lease.release", lambda _: None)
    monkeypatch.setattr("bt_lightning.store.lease.Holder.gone", property(lambda _: True))
    monkeypatch.setattr("bt_lightning.manage.download_copy.Lease._beat", lambda *_: None)

    def run(store):
        if what == "job":
            (job,) = find_jobs(LocalStore(tmp_path / str(last)), "p", "j")
            delete_job(store, "p", "j", job.objects)
        else:
            source = StoreCheckpoints(store, "p", "j")
            wanted = {"c-1", "c-2", "c-3"}
            finish_deletions(source)
            items = [item for item in source.items() if item.name in wanted]
            delete_items(source, items)

    for last in itertools.count():
        store = LocalStore(tmp_path / str(last))
        for step in (1, 2, 3):
            publish(store, PREFIX, make(tmp_path / f"s{last}", f"c-{step}", step))
        protect_stored(store, f"{PREFIX}/c-3", Protection(by="ada"))
        whole = StoreCheckpoints(store, "p", "j")
        names = {item.name for item in whole.items()}
        finished = False
        try:
            run(Mortal(store, last))
            finished = True
        except Killed:
            pass
        left = {item.name for item in StoreCheckpoints(store, "p", "j").items()}
        assert "c-3" in left
        assert left <= names
        for name in left:
            assert verify(tmp_path / str(last) / PREFIX / name)
        run(store)
        keys = {info.key for info in store.list(jobs_prefix("p", "j"))}
        data = {key for key in keys if "/.bt_lightning" not in key}
        files = ("trainer.json", MANIFEST, PROTECTION)
        assert data == {f"{PREFIX}/c-3/{name}" for name in files}, last
        assert not [key for key in keys if key.endswith(MARKER)]
        if finished:
            break
    assert last > 10


def test_naming_what_was_half_deleted_finishes_it(cli, store):
    base = f"{PREFIX}/c-2"
    store.put(f"{base}/{MARKER}", DELETING)
    store.delete([f"{base}/{MANIFEST}"])
    done = cli("checkpoints", "delete", "c-2", *at(store), "--yes")
    assert done.stdout == "c-2: deleted\n"
    assert not list(store.list(base))


def test_jobs_and_projects_are_listed_shown_and_deleted(cli, store, golden):
    golden("jobs.txt", cli("jobs", "list", "--store", store.name).stdout)
    golden("jobs.json", cli("jobs", "list", "--store", store.name, "-ojson").stdout)
    golden("projects.txt", cli("projects", "list", "--store", store.name).stdout)
    assert "c-4" in cli("jobs", "show", "j", "--store", store.name).stdout
    assert " k " in cli("projects", "show", "p", "--store", store.name).stdout
    for kind in ("jobs", "projects"):
        assert cli(kind, "list", "--store", store.name, "-ocsv").stdout.startswith("Project,")
    cli("projects", "show", "none", "--store", store.name, code=10)
    cli("jobs", "delete", "none", "--store", store.name, "--yes", code=10)
    cli("checkpoints", "protect", "c-9", "--store", store.name, "--job-id", "k")
    dry = cli("projects", "delete", "p", "--store", store.name, "--dry-run").stdout
    assert dry.count("would be deleted") == 4
    done = cli("projects", "delete", "p", "--store", store.name, "--yes", "-ojson")
    assert json.loads(done.stdout)["kept_checkpoints"] == ["k/rank-0/c-9"]
    assert left(cli, store, "k") == ["c-9"]
    assert left(cli, store) == []


def test_a_project_with_a_running_job_keeps_that_job_and_says_so(cli, store):
    lease = Lease(store, PREFIX, "somebody")
    lease.take()
    try:
        cli("projects", "delete", "p", "--store", store.name, "--yes", code=29)
    finally:
        lease.release()
    assert len(left(cli, store)) == 4
    assert left(cli, store, "k") == []


@pytest.mark.parametrize("where", ["store", "disk"])
def test_the_trash_keeps_what_was_deleted_for_its_days(cli, store, tmp_path, monkeypatch, where):
    place = at(store) if where == "store" else ("--dir", tmp_path / "source")
    cli("checkpoints", "protect", "c-3", *place)
    words = ("c-2", "c-3", *place, "--trash", "7", "--yes", "-ojson")
    done = cli("checkpoints", "delete", *words, code=30)
    assert json.loads(done.stdout)["deleted"] == ["c-2"]
    assert json.loads(done.stdout)["kept_checkpoints"] == ["c-3"]
    listed = json.loads(cli("checkpoints", "list", *place, "-ojson").stdout)["checkpoints"]
    assert [row["checkpoint_id"] for row in listed] == ["c-1", "c-3", "c-4"]
    rows = json.loads(cli("checkpoints", "trash", "list", *place, "-ojson").stdout)["trash"]
    assert [row["checkpoint_id"] for row in rows] == ["c-2"]
    cli("checkpoints", "trash", "restore", "c-2", *place)
    cli("checkpoints", "verify", "c-2", *at(store))
    assert "is empty" in cli("checkpoints", "trash", "list", *place).stdout
    cli("checkpoints", "trash", "restore", "c-2", *place, code=10)
    cli("checkpoints", "delete", "c-2", *place, "--trash", "1", "--yes")
    cli("checkpoints", "trash", "empty", *place, code=2)  # nobody can be asked
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 25 * 3600)
    assert "is empty" in cli("checkpoints", "trash", "list", *place).stdout
    cli("checkpoints", "delete", "c-1", *place, "--trash", "1", "--yes")
    assert "c-1: deleted" in cli("checkpoints", "trash", "empty", *place, "--yes").stdout
    assert not [info.key for info in store.list(PREFIX) if "trash" in info.key]


def test_what_only_the_disk_has_is_put_aside_there_only(cli, store, tmp_path, make):
    root = tmp_path / "ck"
    made = [make(root, f"d-{step}", step) for step in (1, 2)]
    publish(store, Job.named(Settings(), str(root)).prefix, made[0])
    words = ("checkpoints", "delete", "d-1", "d-2", "--dir", root, "--yes", "--trash", "1")
    assert "--dir alone" in cli(*words, "--store", store.name, code=2).stderr
    assert sorted(path.name for path in root.iterdir() if path.name[0] != ".") == ["d-1", "d-2"]
    cli(*words)
    assert not [path for path in root.iterdir() if path.name[0] != "."]


def test_a_worker_takes_no_notice_of_the_trash(cli, store, tmp_path):
    cli("checkpoints", "delete", "c-4", *at(store), "--trash", "7", "--yes")
    duties = PublisherTasks(tmp_path / "source", store, PREFIX, ())
    duties.delete_stored()
    duties.delete_local()
    assert duties.publish_next() is None
    duties.leave()
    rows = json.loads(cli("checkpoints", "trash", "list", *at(store), "-ojson").stdout)["trash"]
    assert [row["checkpoint_id"] for row in rows] == ["c-4"]
    assert left(cli, store) == ["c-1", "c-2", "c-3"]
    cli("jobs", "delete", "j", "--store", store.name, "--yes")
    assert not list(store.list(jobs_prefix("p", "j")))


def test_a_move_to_the_trash_killed_at_any_request_loses_nothing(tmp_path, make, monkeypatch):
    monkeypatch.setattr("bt_lightning.manage.download_copy.Lease.release", lambda _: None)
    monkeypatch.setattr("bt_lightning.store.lease.Holder.gone", property(lambda _: True))
    monkeypatch.setattr("bt_lightning.manage.download_copy.Lease._beat", lambda *_: None)
    for last in itertools.count():
        store = LocalStore(tmp_path / str(last))
        for step in (1, 2):
            publish(store, PREFIX, make(tmp_path / f"s{last}", f"c-{step}", step))
        finished = False
        try:
            source = StoreCheckpoints(Mortal(store, last), "p", "j")
            trash_items(source, [item for item in source.items() if item.name == "c-1"], 7)
            finished = True
        except Killed:
            pass
        whole = StoreCheckpoints(store, "p", "j")
        there = {item.name for item in whole.items()}
        aside = {one.name for one in trashed(whole)}
        assert "c-2" in there
        assert "c-1" in there | aside
        if "c-1" not in there:
            restore(whole, "c-1")
        assert verify(tmp_path / str(last) / PREFIX / "c-1")
        if finished:
            break
    assert last > 10


@pytest.fixture
def recorded(store):
    """The job `j` runs; `none` has begun and saved nothing."""
    for job, status in (("j", "COMPLETED"), ("none", "RUNNING")):
        record = JobRecord(
            project="p",
            job_id=job,
            job_name=job,
            node_rank=0,
            group_size=1,
            host="node-7",
            status=status,
            checkpoint_sync_status="COMPLETED" if status == "COMPLETED" else "SYNCING",
            created_at="2026-03-01T00:00:00+00:00",
            updated_at="2026-03-01T01:00:00+00:00",
            ended_at="2026-03-01T01:00:00+00:00" if status == "COMPLETED" else None,
            attempts=(
                Attempt(
                    number=0,
                    started_at="2026-03-01T00:00:00+00:00",
                    ended_at="2026-03-01T00:10:00+00:00",
                    signal=9,
                    outcome="failed",
                ),
                Attempt(number=1, started_at="2026-03-01T00:10:05+00:00"),
            ),
        )
        write_record(store, job_prefix("p", job, 0), record)


@pytest.mark.usefixtures("recorded")
def test_jobs_say_what_their_runners_say(cli, store, golden):
    golden("jobs-recorded.txt", cli("jobs", "list", "--store", store.name).stdout)
    place = ("--store", store.name, "--project", "p")
    golden("job-show.txt", cli("jobs", "show", "j", *place).stdout)
    golden("job-show-empty.txt", cli("jobs", "show", "none", *place).stdout)
    said = json.loads(cli("jobs", "show", "j", *place, "-ojson").stdout)
    assert said["job"]["status"] == "COMPLETED"
    assert len(said["checkpoints"]) == 4
    assert "j-none" not in cli("checkpoints", "list", "--all-jobs", *place).stdout


@pytest.mark.usefixtures("recorded")
def test_a_job_with_a_record_only_is_deleted_too(cli, store):
    cli("jobs", "delete", "none", "--store", store.name, "--project", "p", "--yes")
    assert not list(store.list(jobs_prefix("p", "none")))


@pytest.fixture
def with_files(store):
    """The job `j` with what other libraries write, what was cut off and put aside; and another."""
    files = {
        "rank-0/adapter/adapter_model.safetensors": 300,
        **{f"rank-0/checkpoint-{n}/optimizer.pt": 1000 for n in range(30)},
        "rank-0/tb/events.out.tfevents.1": 50,
        "rank-0/.bt_lightning-trash/c-0/model": 70,
        "job.json": 2,
    }
    for path, size in files.items():
        store.put(f"{jobs_prefix('p', 'j')}/{path}", b"x" * size)
    store.put(f"{PREFIX}/cut/{MARKER}", b"{}")
    store.put(f"{PREFIX}/cut/model", b"x" * 400)
    store.put(f"{job_prefix('p', 'other', 0)}/run.log", b"12345")
    protect_stored(store, f"{PREFIX}/c-1", Protection(by="ada"))
    return store


def counted(said):
    return said["files"]["number"], said["files"]["size_bytes"], len(said["files"]["names"])


WHAT = [
    (("jobs", "delete", "j", "--project", "p"), 35, 30822),
    (("projects", "delete", "p"), 36, 30827),
]


@pytest.mark.parametrize(("command", "number", "size"), WHAT, ids=["job", "project"])
def test_what_goes_with_a_job_is_said_before_and_after(cli, with_files, command, number, size):
    """Folders of adapters and of other trainers are somebody's work as much as checkpoints are."""
    place = ("--store", with_files.name)
    dry = json.loads(cli(*command, *place, "--dry-run", "-ojson").stdout)
    assert counted(dry) == (number, size, 20)
    assert "j/rank-0/c-2" in dry["deleted"]
    assert dry["kept_checkpoints"] == ["j/rank-0/c-1"]
    text = cli(*command, *place, "--dry-run").stdout
    assert f"{number} files of no checkpoint" in text
    assert "adapter_model.safetensors" in text
    assert f"and {number - 20} more" in text
    assert "would be deleted" in cli(*command, *place, "--dry-run", "-ocsv").stdout
    before = {info.key for info in with_files.list("")}
    asked = on_terminal(*command, *place, answer="no")
    assert asked.returncode == 1
    assert f"{number} files of no checkpoint" in asked.stderr
    assert "adapter_model.safetensors" in asked.stderr
    assert {info.key for info in with_files.list("")} == before
    done = json.loads(cli(*command, *place, "--yes", "-ojson").stdout)
    assert counted(done) == (number, size, 20)
    assert done["files"] == dry["files"]
    assert sorted(done["deleted"]) == sorted(dry["deleted"])
    assert done["left"] == 0
    kept = {info.key for info in with_files.list(jobs_prefix("p", "j"))}
    assert {key.removeprefix(f"{PREFIX}/c-1/") for key in kept} == {
        MANIFEST, PROTECTION, "trainer.json",
    }  # fmt: skip


def test_lists_of_jobs_and_projects_say_what_else_there_is(cli, with_files):
    place = ("--store", with_files.name)
    jobs = {
        j["job_id"]: j for j in json.loads(cli("jobs", "list", *place, "-ojson").stdout)["jobs"]
    }
    assert counted(jobs["j"]) == (35, 30822, 20)
    assert counted(jobs["other"]) == (1, 5, 1)
    assert counted(jobs["k"]) == (0, 0, 0)
    assert jobs["other"]["checkpoints"] == 0
    assert "Other Files" in cli("jobs", "list", *place).stdout
    (project,) = json.loads(cli("projects", "list", *place, "-ojson").stdout)["projects"]
    assert counted(project) == (36, 30827, 20)
    assert "Other Files" in cli("projects", "list", *place).stdout
    assert ",36,30827," in cli("projects", "list", *place, "-ocsv").stdout
    assert cli("jobs", "delete", "other", *place, "--yes").stdout.startswith("1 file of no")
    assert not list(with_files.list(jobs_prefix("p", "other")))


def test_what_was_not_counted_is_not_deleted(cli, with_files, tmp_path, make):
    """Between question and answer somebody starts the job again, or copies something there."""
    (job,) = find_jobs(with_files, "p", "j")
    publish(with_files, PREFIX, make(tmp_path / "late", "c-77", 77))
    late = {f"{PREFIX}/adapter/late.json", f"{PREFIX}/late", f"{jobs_prefix('p', 'j')}/late"}
    for key in late:
        with_files.put(key, b"late")
    done = delete_job(with_files, "p", "j", job.objects)
    there = {info.key for info in with_files.list(jobs_prefix("p", "j"))}
    assert late < there
    assert {item.name for item in StoreCheckpoints(with_files, "p", "j").items()} == {"c-1", "c-77"}
    assert sorted(done.left) == [
        "j/late", "j/rank-0/adapter/late.json", "j/rank-0/c-77", "j/rank-0/late",
    ]  # fmt: skip


def test_a_request_says_that_a_person_asked_and_one_that_says_nothing_is_a_persons(cli, store):
    """Earlier versions wrote a line feed, and only for the command line."""
    lease = Lease(store, PREFIX, "its worker")
    lease.take()
    try:
        cli("checkpoints", "delete", "c-2", *at(store), "--yes")
    finally:
        lease.release()
    (digest,) = requested_stored_removals(store, PREFIX)
    folder = removals_folder(PREFIX)
    assert json.loads(store.read(f"{folder}/{digest}")) == {"by": "person"}
    store.put(f"{folder}/{'0' * 32}", b"\n")
    store.put(f"{folder}/{'1' * 32}", b'{"by": "training"}\n')
    store.put(f"{folder}/no-digest", b"\n")
    assert requested_stored_removals(store, PREFIX) == {
        digest: Requester.PERSON,
        "0" * 32: Requester.PERSON,
        "1" * 32: Requester.TRAINING,
    }


def test_what_is_protected_is_not_asked_of_a_running_job(cli, store):
    """Nobody could tell why it goes once it is unprotected."""
    cli("checkpoints", "protect", "c-2", *at(store))
    lease = Lease(store, PREFIX, "its worker")
    lease.take()
    try:
        said = cli("checkpoints", "delete", "c-2", "c-3", *at(store), "--yes", "-ojson", code=30)
    finally:
        lease.release()
    answer = json.loads(said.stdout)
    assert (answer["asked"], answer["kept_checkpoints"]) == (["c-3"], ["c-2"])
    assert len(requested_stored_removals(store, PREFIX)) == 1


def test_the_newest_of_each_fit_stay(cli, make, tmp_path):
    root = tmp_path / "ck"
    for step in (90, 99):
        make(root, f"c-{step}", step)
    for step in (1, 2):
        make(root, f"fit-2/c-{step}", step, origin={"fit": {"id": "fit-2"}})
    cli("checkpoints", "delete", "--dir", root, "--keep-last", "1", "--yes")
    left = {str(path.parent.relative_to(root)) for path in root.rglob("bt_manifest.json")}
    assert left == {"c-99", "fit-2/c-2"}
