"""`status` and `doctor`: what is, and what to do about it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from bt_lightning.cli.commands.status_doctor import screen
from bt_lightning.localdir.event_log import note
from bt_lightning.localdir.held_images import HeldImage, offer_image, started_at
from bt_lightning.localdir.upload_status import UploadMeter, read_uploading
from bt_lightning.manage.run_status import Upload, run_status
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.worker.publisher_tasks import PublisherTasks

SAVE = {"number": 1, "checkpoint_id": "checkpoint-20", "step": 20, "decision": "saved"}


@pytest.fixture
def root(tmp_path, make):
    for step in (10, 20):
        make(tmp_path / "ck", f"checkpoint-{step}", step)
    note(tmp_path / "ck", "save", began=time.time() - 3, call_ms=500, guard_ms=250, **SAVE)
    return tmp_path / "ck"


def test_status_tells_of_saves_disk_and_memory(cli, root):
    said = json.loads(cli("status", "--dir", root, "-o", "json").stdout)
    assert (said["saves"], said["checkpoints"], said["newest"]) == (1, 2, "checkpoint-20")
    assert said["stall_s"] == 0.75
    assert said["staged"] == 1
    note(root, "durable", number=1, checkpoint="checkpoint-20")
    said = cli("status", "--dir", root).stdout
    assert "step 20, saved 0 s ago; 1 saves took 0.75 s of training" in said
    assert "on the way to the disk" not in said
    assert "nothing is uploaded from here" in said


def test_status_says_what_a_killed_run_left_in_memory(root):
    own = {"pid": os.getpid(), "started": started_at(os.getpid()), "descriptor": 0}
    facts = {"checkpoint_id": "checkpoint-20", "files": {"0" * 32: (4096, 5_000_000)}}
    offer_image(root, HeldImage(**own, **facts, until=time.time() + 20.5))
    said = screen(run_status(root))
    assert "Memory      checkpoint-20 of the killed run, 5.00 MB, for 20 s: the next start" in said
    offer_image(root, HeldImage(**{**own, "started": 1}, **facts, until=0.0))
    assert "of the killed run" not in screen(run_status(root))


def test_status_shows_an_upload_while_it_runs_and_a_failure_after_it(root):
    meter = UploadMeter(root)
    meter.begin("checkpoint-20", 1000, 1)
    meter.add(400)
    meter.end("no route to s3://bucket")
    assert "the last upload failed: no route" in screen(run_status(root))
    assert read_uploading(root).waiting == 2
    meter.begin("checkpoint-20", 1000, 1)
    seen = run_status(root)
    assert (seen.upload.checkpoint, seen.upload.bytes_total, seen.waiting) == (
        "checkpoint-20", 1000, 1,
    )  # fmt: skip
    assert "uploading checkpoint-20" in screen(seen)


def test_the_time_left_falls_between_two_words_of_the_worker():
    seen = [Upload("checkpoint-20", 250, 1000, 10.0, since) for since in (0.0, 1.0, 9.0, 99.0)]
    assert [one.left_s for one in seen] == [30.0, 29.0, 21.0, 0.0]
    assert Upload("checkpoint-20", 0, 1000, 10.0).left_s is None


def test_an_upload_has_a_bar(root):
    meter = UploadMeter(root)
    meter.begin("checkpoint-20", 1000, 0)
    meter._next = 0.0  # it writes twice a second at most
    meter.add(250)
    assert "[#####...............]  25 % 250 B of 1.00 KB" in screen(run_status(root))


def test_watch_waits_for_a_run_to_begin(tmp_path, make):
    with subprocess.Popen(
        [sys.executable, "-m", "bt_lightning", "status", "--watch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "FORCE_COLOR": "1", "COLUMNS": "300"},
    ) as watching:
        assert "Waiting for a run to begin in ./bt_checkpoints" in watching.stdout.readline()
        make(tmp_path / "bt_checkpoints" / "j", "checkpoint-1", 1)
        lines = iter(watching.stdout.readline, "")
        assert any("bt_checkpoints/j" in line for line in lines)
        watching.send_signal(2)
        _, err = watching.communicate(timeout=60)
    assert (watching.returncode, "Traceback" in err) == (130, False)


def test_the_upload_of_a_dead_worker_is_none(root):
    code = (
        "import sys; from pathlib import Path;"
        "from bt_lightning.localdir.upload_status import UploadMeter;"
        "UploadMeter(Path(sys.argv[1])).begin('checkpoint-20', 1000, 0)"
    )
    subprocess.run([sys.executable, "-c", code, str(root)], check=True)
    assert read_uploading(root).checkpoint == "checkpoint-20"
    assert run_status(root).upload is None


def test_a_worker_tells_of_every_byte_that_it_uploads(root, tmp_path, monkeypatch):
    seen = []
    add = UploadMeter.add
    monkeypatch.setattr(
        UploadMeter, "add", lambda self, count: (seen.append(count), add(self, count))
    )
    duties = PublisherTasks(root, LocalStore(tmp_path / "store"), "p", ())
    sizes = []
    while (done := duties.publish_next()) is not None:
        sizes.append(done.manifest.size)
    duties.leave()
    assert sum(seen) == sum(sizes)
    assert read_uploading(root).checkpoint == ""


def test_rubbish_where_the_worker_writes_is_no_upload(root):
    for rubbish in ("", "[]", '{"pid": 1}', '{"pid": "x", "at": 0, "checkpoint": "c"}'):
        (root / ".bt_lightning" / "uploading.json").write_text(rubbish)
        assert run_status(root).upload is None


def test_watch_ends_with_ctrl_c_and_no_traceback(root):
    with subprocess.Popen(
        [sys.executable, "-m", "bt_lightning", "status", "--dir", str(root), "--watch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FORCE_COLOR": "1"},
    ) as watching:
        first = watching.stdout.readline()  # it draws, so it handles signals by now
        watching.send_signal(2)
        out, err = watching.communicate(timeout=20)
    assert "Directory" in first + out
    assert watching.returncode == 130
    assert "Traceback" not in err


def test_doctor_finds_all_well_and_leaves_nothing(cli, root, tmp_path):
    before = sorted(root.rglob("*"))
    store = LocalStore(tmp_path / "store")
    done = cli("doctor", "--dir", root, "--store", store.name)
    assert "All that a save needs works." in done.stdout
    for name in ("put", "conditional put", "list", "large files", "delete", "next save"):
        assert f"ok  {name}: " in done.stdout
    assert {path for path in root.rglob("*") if path.is_file()} <= set(before)
    assert not list(store.list(""))


def test_doctor_says_what_fails_and_what_to_do(cli, tmp_path):
    (tmp_path / "file").write_text("")
    done = cli("doctor", "--dir", tmp_path / "file", "-o", "json", code=1)
    found = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert found["directory"]["result"] == "failed"
    assert found["directory"]["remedy"]
    assert found["store"]["result"] == "warning"
    done = cli("doctor", "--store", "nope://x", code=1)
    assert "failed  store: " in done.stdout


def test_doctor_names_what_a_store_refuses_and_tries_the_rest(cli, tmp_path, monkeypatch):
    from bt_lightning.errors import StorePermanentError

    def refuse(*_):
        msg = "AccessDenied"
        raise StorePermanentError(msg)

    monkeypatch.setattr(LocalStore, "put_new", refuse)
    done = cli("doctor", "--store", LocalStore(tmp_path / "store").name, code=1)
    assert "failed  conditional put: AccessDenied" in done.stdout
    assert "ok  delete" in done.stdout
