"""Which files of a checkpoint directory belong to no checkpoint, and what is remembered of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys

import pytest

from bt_lightning.errors import CheckpointNotFoundError
from bt_lightning.glob_patterns import Patterns
from bt_lightning.localdir.find_job_files import Stamp, find_job_files
from bt_lightning.localdir.uploaded_job_files import UploadedJobFiles
from bt_lightning.path_layout import MANIFEST, MARKER, PROTECTION
from bt_lightning.store.transfer.job_file_source import JobFileSource


def write(file, data=b"x"):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def stamp_of(file):
    return Stamp.of(file.stat())


# what is found


def test_files_anywhere_below_are_found_with_their_stamps(tmp_path):
    for path in ("a.json", "logs/version_0/events.out.tfevents.1", "checkpoint-5/optimizer.pt"):
        write(tmp_path / path)
    found = find_job_files(tmp_path)
    assert set(found.files) == {
        "a.json",
        "logs/version_0/events.out.tfevents.1",
        "checkpoint-5/optimizer.pt",
    }
    assert found.files["a.json"] == stamp_of(tmp_path / "a.json")
    assert found.refused == {}


def test_a_directory_with_a_manifest_is_a_checkpoint_with_all_that_is_in_it(tmp_path):
    write(tmp_path / "checkpoint-1" / MANIFEST)
    write(tmp_path / "checkpoint-1" / "model.safetensors")
    write(tmp_path / "checkpoint-1" / "sub" / "added.txt")
    write(tmp_path / "runs" / "checkpoint-2" / MANIFEST)
    write(tmp_path / "runs" / "notes.txt")
    assert set(find_job_files(tmp_path).files) == {"runs/notes.txt"}


@pytest.mark.parametrize(
    "path",
    [
        ".hidden",
        ".bt_lightning/events.jsonl",
        "a/.cache/b",
        "a/.b.part",
        "x.tmp",
        "x.part",
        "x.incomplete",
        "notes~",
        "tmp-checkpoint-10/model.bin",
        f"a/{MARKER}",
        f"a/{PROTECTION}",
    ],
)
def test_what_is_under_way_or_says_something_of_checkpoints_is_left_out(tmp_path, path):
    write(tmp_path / path)
    assert find_job_files(tmp_path).files == {}


def test_links_sockets_and_pipes_are_left_out(tmp_path):
    """A link may lead out of the directory, in a circle, or to what is sent already."""
    outside = write(tmp_path / "outside" / "secret")
    root = tmp_path / "root"
    write(root / "here")
    (root / "link").symlink_to(outside)
    (root / "own").symlink_to(root / "here")
    (root / "folder").symlink_to(outside.parent)
    (root / "circle").symlink_to(root)
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket"))
        assert set(find_job_files(root).files) == {"here"}


def test_names_that_no_store_can_have_are_told_and_do_not_hide_others(tmp_path):
    write(tmp_path / "good \u00e9\u4e2d.txt")
    write(tmp_path / "back\\slash")
    write(tmp_path / "new\nline")
    os.mknod(os.fsencode(tmp_path) + b"/\xff\xfe")
    found = find_job_files(tmp_path)
    assert set(found.files) == {"good \u00e9\u4e2d.txt"}
    assert set(found.refused) == {"back\\\\slash", "new\\nline", "\\udcff\\udcfe"}
    assert all(name.isprintable() for name in found.refused)


def test_only_what_is_wanted_is_found(tmp_path):
    for path in ("a.json", "b.bin", "logs/c.json", "logs/d.bin"):
        write(tmp_path / path)
    patterns = Patterns(include=("**/*.json", "*.bin"), exclude=("logs/**",))
    assert set(find_job_files(tmp_path, patterns.choose).files) == {"a.json", "b.bin"}


def test_a_directory_that_is_not_there_is_empty(tmp_path):
    assert find_job_files(tmp_path / "none").files == {}


@pytest.mark.parametrize("change", ["append", "rewrite", "mtime", "replace"])
def test_every_change_of_a_file_changes_its_stamp(tmp_path, change):
    file = write(tmp_path / "a", b"1234")
    os.utime(file, ns=(0, 1_000_000_000))
    before = stamp_of(file)
    if change == "append":
        file.write_bytes(b"12345")
    elif change == "rewrite":
        file.write_bytes(b"5678")
        os.utime(file, ns=(0, 1_000_000_000))
    elif change == "mtime":
        os.utime(file)
    else:
        write(tmp_path / "b", b"9999").replace(file)
    assert stamp_of(file) != before


# what is remembered

ONE, TWO = Stamp(1, 2, 3, 4), Stamp(5, 6, 7, 8)


def test_what_arrived_is_known_to_the_next_start_and_of_no_other_place(tmp_path):
    arrived = UploadedJobFiles(tmp_path, "s3://bucket/job")
    arrived.add([("a/b", ONE), ("c", TWO)])
    arrived.add([("c", ONE)])
    again = UploadedJobFiles(tmp_path, "s3://bucket/job")
    assert ("a/b", ONE) in again
    assert ("c", ONE) in again
    assert ("c", TWO) not in again
    assert ("a/b", ONE) not in UploadedJobFiles(tmp_path, "s3://bucket/other")


def test_what_the_store_has_lost_is_forgotten_for_good(tmp_path):
    arrived = UploadedJobFiles(tmp_path, "here")
    arrived.add([("a", ONE), ("b", ONE), ("c", ONE)])
    arrived.keep_held({"a": ONE.size, "b": ONE.size + 1})
    for known in (arrived, UploadedJobFiles(tmp_path, "here")):
        assert [path for path in "abc" if (path, ONE) in known] == ["a"]


@pytest.mark.parametrize(
    "rubbish",
    [b"", b"\x00\xff\n", b'["a", 1, 2, 3]\n', b'["a", 1, 2, 3, "4"]\n', b'{"a": 1}\n', b"[" * 9999],
)
def test_a_damaged_record_costs_another_sending_and_no_more(tmp_path, rubbish):
    arrived = UploadedJobFiles(tmp_path, "here")
    arrived.add([("a", ONE)])
    with arrived._file.open("ab") as stream:
        stream.write(rubbish[:-1])
    again = UploadedJobFiles(tmp_path, "here")
    again.add([("b", TWO)])
    last = UploadedJobFiles(tmp_path, "here")
    assert ("a", ONE) in last
    assert ("b", TWO) in last
    arrived._file.write_bytes(rubbish)
    assert len(UploadedJobFiles(tmp_path, "here")) == 0


def test_the_record_does_not_grow_with_every_change_of_one_file(tmp_path):
    arrived = UploadedJobFiles(tmp_path, "here")
    for number in range(500):
        arrived.add([("a", ONE._replace(size=number))])
    size = arrived._file.stat().st_size
    assert ("a", ONE._replace(size=499)) in UploadedJobFiles(tmp_path, "here")
    assert arrived._file.stat().st_size < size / 100


def test_a_record_that_cannot_be_written_costs_nothing_else(tmp_path):
    write(tmp_path / ".bt_lightning")  # a file where the folder should be
    arrived = UploadedJobFiles(tmp_path, "here")
    arrived.add([("a", ONE)])
    arrived.keep({})
    assert len(arrived) == 0


# what is read


def test_a_file_is_read_as_it_was_by_its_stamp(tmp_path):
    data = os.urandom(100_000)
    file = write(tmp_path / "a", data)
    with JobFileSource(file, stamp_of(file)) as source:
        with source.hold(0, 4096) as one, source.lend(4096, 90_000) as lent:
            assert bytes(one) == data[:4096]
            with lent.view(0, 1000) as piece:
                assert bytes(piece) == data[4096:5096]
            with lent.view(500, 1000) as piece:
                assert bytes(piece) == data[4596:5096]
            with lent.view(60_000, 90_000) as piece:
                assert bytes(piece) == data[64_096:94_096]
        source.check()


def append(file):
    with file.open("ab") as stream:
        stream.write(b"more")


def overwrite(file):
    with file.open("r+b") as stream:
        stream.write(b"other")


def cut(file):
    os.truncate(file, 10)


CHANGES = [append, overwrite, cut, os.unlink]


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changed_before_it_was_opened_is_not_sent(tmp_path, change):
    file = write(tmp_path / "a", b"x" * 10_000)
    stamp = stamp_of(file)
    change(file)
    with pytest.raises(CheckpointNotFoundError, match="changed"):
        JobFileSource(file, stamp)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("way", ["hold", "lend"])
def test_a_file_that_changes_while_it_is_sent_is_not_sent(tmp_path, change, way):
    file = write(tmp_path / "a", b"x" * 10_000)
    with JobFileSource(file, stamp_of(file)) as source:
        with source.hold(0, 5000):
            pass
        change(file)
        with contextlib.ExitStack() as stack:
            take = source.hold
            if way == "lend":
                take = stack.enter_context(source.lend(0, 10_000)).view
            with pytest.raises(CheckpointNotFoundError, match="changed"):
                stack.enter_context(take(5000, 5000 if way == "hold" else 10_000))


def test_a_file_that_keeps_changing_is_read_between_two_writes(tmp_path):
    """Also by a reader that looks as often as the writer writes."""
    file = write(tmp_path / "a")
    code = "import sys, time\nwhile True:\n open(sys.argv[1], 'a').write('x'); time.sleep(0.05)"
    with subprocess.Popen([sys.executable, "-c", code, str(file)]) as writer:
        try:
            for _ in range(10):
                with contextlib.suppress(CheckpointNotFoundError), JobFileSource(file) as source:
                    with source.hold(0, source.size) as view:
                        assert bytes(view) == b"x" * source.size
                    break
            else:
                pytest.fail("never read")
        finally:
            writer.kill()


@pytest.mark.parametrize("what", ["link", "pipe", "folder"])
def test_a_name_that_leads_somewhere_else_meanwhile_is_not_followed(tmp_path, what):
    file = write(tmp_path / "a")
    stamp = stamp_of(file)
    moved = tmp_path / "moved"
    shutil.move(file, moved)
    if what == "link":
        file.symlink_to(moved)
    elif what == "pipe":
        os.mkfifo(file)
    else:
        file.mkdir()
    with pytest.raises(CheckpointNotFoundError, match="changed"):
        JobFileSource(file, stamp)
