"""Anything may lie under the names of our files: nothing waits, nothing grows, the rest goes on."""

from __future__ import annotations

import json
import os

import pytest

from bt_lightning.errors import CheckpointCorruptError, DirectoryUnusableError
from bt_lightning.file_limits import LINE, LINES_BYTES, RECORD
from bt_lightning.localdir.directory_walk import MOST_ENTRIES
from bt_lightning.localdir.event_log import note, read_events
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, read_manifest, verify
from bt_lightning.localdir.protection import is_protected_local, protect_local, protection_of
from bt_lightning.localdir.removal_requests import request_local_removal, requested_local_removals
from bt_lightning.localdir.safe_open import open_own, open_regular
from bt_lightning.localdir.small_files import read_lines, read_small_file, replace_small
from bt_lightning.path_layout import DOT_DIR, MANIFEST
from bt_lightning.protection_record import Protection
from tests.oddities import (
    KINDS,
    MOST_MB,
    committed,
    deep,
    dense,
    fifo,
    folder,
    limited,
    nowhere,
    sparse,
    spoil,
)

_READ_ALL = """
import json, os
from contextlib import suppress
from pathlib import Path
from bt_lightning.errors import CheckpointError
from bt_lightning.localdir.uploaded_job_files import UploadedJobFiles
from bt_lightning.localdir.newest_in_store import newest_in_store
from bt_lightning.localdir.commit import write_hint
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, verify
from bt_lightning.localdir.atomic_directory import sweep
from bt_lightning.localdir.event_log import note, read_events
from bt_lightning.localdir.publisher_id import publisher_id_of
from bt_lightning.localdir.protection import is_protected_local, protection_of
from bt_lightning.localdir.upload_status import UploadMeter, read_uploading
from bt_lightning.localdir.job_record_file import read_local, read_stop_local
from bt_lightning.runtime.job_lock import lock_directory
from bt_lightning.store.s3.multipart_journal import MultipartJournal
from bt_lightning.store.transfer.resume_publication import SentFiles, uploads_folder
from bt_lightning.worker.commit_lock import wait_for_commits
from bt_lightning.worker.publisher_lock import PublisherLock, stand_by, stands_by

root = Path(sys.argv[1])
said = {}
listed = list_committed(root)
said["found"] = [one.path.name for one in listed.found]
said["refused"] = [one.reason for one in listed.refused]
verify(root / "good")
assert is_protected_local(root / "protected") and protection_of(root / "protected") is not None
with suppress(CheckpointError, FileNotFoundError):
    said["events"] = len(list(read_events(root)))
assert read_stop_local(root) is None
assert read_local(root) is None or sys.argv[2] == "new"
assert newest_in_store(root) is None
assert read_uploading(root) is None
assert len(publisher_id_of(root)) == 32
assert list(MultipartJournal(uploads_folder(root)).all("s3://b")) == []
UploadedJobFiles(root, "place").add([])
SentFiles(root, "place").begin_lease(None, "token")
for act in (
    lambda: write_hint(root, "good", 1),
    lambda: note(root, "began"),
    lambda: UploadMeter(root).end(),
    lambda: os.close(lock_directory(root, "job")),
    lambda: wait_for_commits(root, 1),
    lambda: PublisherLock(root, standby=False).acquire(),
    lambda: PublisherLock(root, standby=True).acquire(),
    lambda: os.close(stand_by(root, "s3://b", "p")),
    lambda: stands_by(root, "s3://b", "p"),
):
    try:
        act()
    except CheckpointError as error:
        assert "expected a regular file: move it away" in str(error), error
    except OSError as error:
        assert error.filename and Path(error.filename).is_dir(), error
sweep(root)
print(json.dumps(said))
"""


@pytest.mark.parametrize("put", KINDS, ids=lambda put: put.__name__)
def test_no_file_of_ours_makes_a_reader_wait_or_grow_or_hides_the_good_ones(put, tmp_path):
    """Each under `MOST_MB` and within the time of the test's limit, all files in one process."""
    spoil(tmp_path, put)
    done, peak = limited(_READ_ALL, str(tmp_path), put.__name__)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["found"] == ["protected", "good"]
    gone = put is nowhere or put is folder
    assert len(said["refused"]) == (0 if gone else 1)
    assert all(str(tmp_path / "bad") in reason for reason in said["refused"])
    assert peak < MOST_MB
    assert not (tmp_path / DOT_DIR / "elsewhere").exists(), "nothing is written through a link"


@pytest.mark.parametrize("put", KINDS, ids=lambda put: put.__name__)
def test_a_file_that_is_none_is_named(put, tmp_path):
    put(tmp_path / "odd")
    if put is nowhere:
        with pytest.raises(FileNotFoundError):
            read_small_file(tmp_path / "odd", RECORD)
    elif put is not deep:
        with pytest.raises(CheckpointCorruptError, match=r"expected (a regular file|at most)"):
            read_small_file(tmp_path / "odd", RECORD)
    if put not in {sparse, dense, deep}:
        with pytest.raises(
            DirectoryUnusableError, match=r"odd is a.*, expected a regular file: mov"
        ):
            open_own(tmp_path / "odd", os.O_RDWR | os.O_CREAT)


def test_a_file_of_a_checkpoint_that_is_a_pipe_is_damage(tmp_path):
    """It has 0 bytes as an empty file has, and to open it would wait for ever."""
    committed(tmp_path, "c", 1)
    (tmp_path / "c" / "trainer.json").unlink()
    fifo(tmp_path / "c" / "trainer.json")
    with pytest.raises(CheckpointCorruptError, match=r"its file trainer\.json is no regular file"):
        verify(tmp_path / "c")
    with pytest.raises(CheckpointCorruptError, match="is a FIFO, expected a regular file"):
        open_regular(tmp_path / "c" / "trainer.json")


def test_a_manifest_may_still_be_a_link_to_one(tmp_path):
    committed(tmp_path, "c", 1)
    manifest = read_manifest(tmp_path / "c")
    (tmp_path / "c" / MANIFEST).rename(tmp_path / "blob")
    (tmp_path / "c" / MANIFEST).symlink_to(tmp_path / "blob")
    assert read_manifest(tmp_path / "c") == manifest
    assert [one.manifest for one in list_committed(tmp_path).found] == [manifest]


def test_a_small_file_takes_the_place_of_whatever_has_its_name(tmp_path):
    for number, put in enumerate(KINDS):
        if put is folder:
            continue
        put(tmp_path / f"{number}")
        put(tmp_path / f".{number}.part")
        replace_small(tmp_path / f"{number}", b"x")
        assert (tmp_path / f"{number}").read_bytes() == b"x"
        assert not os.path.lexists(tmp_path / f".{number}.part")
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / "d").mkdir()
    with pytest.raises(IsADirectoryError):
        replace_small(tmp_path / "d", b"x")
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


def test_events_of_a_file_that_is_too_large_are_its_last(tmp_path):
    note(tmp_path, "first")
    file = tmp_path / DOT_DIR / "events.jsonl"
    with file.open("ab") as stream:
        stream.write(b'{"event": "long", "at": 1, "text": "' + b"a" * LINE.size + b'"}\n')
        stream.truncate(LINES_BYTES)
    note(tmp_path, "last")
    assert [event["event"] for event in read_events(tmp_path)] == ["last"]


def test_lines_are_told_from_where_one_is_asked_for(tmp_path):
    file = tmp_path / "lines"
    file.write_bytes(b"one\n" + b"x" * 3 * LINE.size + b"\ntwo\nhalf")
    assert list(read_lines(file)) == [b"one\n", b"two\n", b"half"]
    assert list(read_lines(file, 4)) == [b"two\n", b"half"]
    assert list(read_lines(file, 10**12)) == [b"one\n", b"two\n", b"half"]


def test_what_is_no_request_asks_for_nothing(tmp_path):
    request_local_removal(tmp_path, "0" * 32)
    folder_ = tmp_path / DOT_DIR / "remove"
    for name in ("a", "0" * 31, "G" * 32, "0" * 33, "..."):
        (folder_ / name).touch()
    assert requested_local_removals(tmp_path).keys() == {"0" * 32}


def test_what_protects_protects_whatever_it_is(tmp_path):
    for number, put in enumerate(KINDS):
        name = f"c{number}"
        committed(tmp_path, name, 1)
        put(tmp_path / name / "bt_protected.json")
        assert is_protected_local(tmp_path / name)
        assert protection_of(tmp_path / name) == Protection()
        if put is not folder:
            protect_local(tmp_path / name, Protection(by="me"))
            assert protection_of(tmp_path / name) == Protection(by="me")


_LIST = """
import json
from pathlib import Path
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.localdir.find_job_files import find_job_files
from bt_lightning.localdir.removal_requests import requested_local_removals
from bt_lightning.localdir.atomic_directory import children
root = Path(sys.argv[1])
listed = list_committed(root)
print(json.dumps([
    [one.path.name for one in listed.found], [one.reason for one in listed.unread],
    len(requested_local_removals(root)), len(children(root / "many")),
    len(find_job_files(root).files),
]))
"""


def test_a_folder_of_very_many_entries_costs_little_and_hides_nothing(tmp_path):
    """Their names are never held. (Of a checkpoint not even one is looked at.)"""
    committed(tmp_path, "checkpoint-1", 1)
    committed(tmp_path, "with-many", 2)
    requests = tmp_path / DOT_DIR / "remove"
    for place, count in ((tmp_path / "many", 60_000), (tmp_path / "with-many", 60_000)):
        place.mkdir(exist_ok=True)
        (place / "0").touch()
        for number in range(1, count):
            os.link(place / "0", place / f"{number:040}")
    requests.mkdir()
    for number in range(1_000):
        (requests / f"not-a-digest-{number}").touch()
    done, peak = limited(_LIST, str(tmp_path))
    found, unread, requested, looked, loose = json.loads(done.stdout)
    assert (found, unread, requested) == (["with-many", "checkpoint-1"], [], 0)
    assert (looked, loose) == (10_000, 60_000)
    assert peak < MOST_MB


def test_a_folder_of_more_than_a_million_entries_is_left_out_by_name(tmp_path, monkeypatch):
    from bt_lightning.localdir import directory_walk

    monkeypatch.setattr(directory_walk, "MOST_ENTRIES", 50)
    assert MOST_ENTRIES == 1_000_000
    committed(tmp_path, "checkpoint-1", 1)
    committed(tmp_path, "many/below/checkpoint-2", 2)
    for number in range(60):
        (tmp_path / "many" / f"{number}").touch()
    listed = list_committed(tmp_path)
    assert "checkpoint-1" in [one.path.name for one in listed.found]
    (unread,) = listed.unread
    assert unread.reason == (
        f"{tmp_path / 'many'} has more than 50 entries: move what does not belong there elsewhere:"
        " it is left out"
    )
    for number in range(60):
        (tmp_path / f"{number}").touch()
    with pytest.raises(DirectoryUnusableError, match="has more than 50 entries"):
        list_committed(tmp_path)  # the newest might be what is not looked at
