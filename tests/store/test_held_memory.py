"""What a process holds of a checkpoint counts where it equals the manifest; the rest is read."""

from __future__ import annotations

import json
import os
import sys
import time

import pytest
import torch

from bt_lightning import BTCheckpointIO
from bt_lightning.localdir.held_images import (
    MEMORY_NAME,
    HeldImage,
    held_dir,
    held_images,
    offer_image,
    release_held_images,
    started_at,
)
from bt_lightning.path_layout import DOT_DIR
from bt_lightning.restore.dcp_folder import directory_reader
from bt_lightning.store.transfer.copy_first_reader import CopyFirstReader
from bt_lightning.store.transfer.files_reader import DirectoryReader

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memfd_create(2) of Linux")


@pytest.fixture
def saved(tmp_path):
    """A committed checkpoint of several blocks, and its state."""
    state = {"a": torch.arange(3_000_000, dtype=torch.float32), "b": torch.ones(7), "c": 5}
    path = tmp_path / "checkpoint-1"
    BTCheckpointIO().save_checkpoint(state, path)
    (tmp_path / DOT_DIR).mkdir(exist_ok=True)
    return path, state


@pytest.fixture
def hold(saved):
    """Holds the files of the checkpoint in memory of this process."""
    path, _ = saved
    descriptors = []

    def held(name=MEMORY_NAME, **changed):
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
        descriptors.append(descriptor)
        manifest, files, offsets, at = DirectoryReader(path).manifest, {}, {}, 4096
        for entry in manifest.files:
            os.pwrite(descriptor, (path / entry.path).read_bytes(), at)
            files[entry.xxh3_128], offsets[entry.path] = (at, entry.size), at
            at += -(-entry.size // 4096) * 4096
        fields = {
            "pid": os.getpid(),
            "started": started_at(os.getpid()),
            "descriptor": descriptor,
            "checkpoint_id": path.name,
            "until": time.time() + 60,
            "files": files,
        }
        offer_image(path.parent, HeldImage(**{**fields, **changed}))
        return descriptor, offsets

    yield held
    for descriptor in descriptors:
        os.close(descriptor)


def load(path):
    """The state, and how many bytes came from memory and from the disk."""
    with directory_reader(path) as reader:
        state = BTCheckpointIO().load_from(reader)
        if not isinstance(reader, CopyFirstReader):
            return state, 0, reader.manifest.size
        return state, reader.copy_bytes, reader.whole_bytes


def same(one, other):
    return torch.equal(one["a"], other["a"]) and torch.equal(one["b"], other["b"])


def test_everything_comes_from_memory(saved, hold):
    path, state = saved
    hold()
    found, memory, disk = load(path)
    assert same(found, state)
    assert memory > 12_000_000
    assert disk == 0


def test_without_it_everything_comes_from_the_disk(saved):
    path, state = saved
    found, memory, disk = load(path)
    assert same(found, state)
    assert memory == 0
    assert disk > 12_000_000


def test_blocks_that_were_overwritten_come_from_the_disk(saved, hold):
    path, state = saved
    descriptor, offsets = hold()
    place = max(offsets.items(), key=lambda each: (path / each[0]).stat().st_size)[1]
    os.pwrite(descriptor, b"another save", place + 8_000_000)
    found, memory, disk = load(path)
    assert same(found, state)
    assert 0 < disk < 5_000_000
    assert memory > 12_000_000


def test_memory_that_ends_early_is_not_read(saved, hold):
    path, state = saved
    descriptor, _ = hold()
    os.ftruncate(descriptor, 5_000_000)
    found, _, disk = load(path)
    assert same(found, state)
    assert disk


def test_damage_of_both_is_named(saved, hold):
    path, _ = saved
    descriptor, offsets = hold()
    name = max(offsets, key=lambda each: (path / each).stat().st_size)
    os.pwrite(descriptor, b"another save", offsets[name] + 8_000_000)
    with (path / name).open("r+b") as file:
        file.seek(8_000_000)
        file.write(b"a bad disk")
    with pytest.raises(ValueError, match="damaged"):
        load(path)


@pytest.mark.parametrize(
    "changed",
    [
        {"started": 1},
        {"pid": 2**22 + 1},
        {"descriptor": 10**6},
        {"files": {}},
        {"files": {"0" * 32: (0, 5)}},
        {"files": {"../../x": (0, 5)}},
        {"files": {"0" * 32: (-4096, 5)}},
        {"until": "soon"},
        {"until": float("inf")},
        {"until": float("nan")},
        {"pid": float("inf")},
        {"descriptor": 2**80},
        {"files": None},
    ],
    ids=str,
)
def test_a_record_of_something_else_is_left_alone(saved, hold, changed):
    path, state = saved
    hold(**changed)
    found, memory, _ = load(path)
    assert same(found, state)
    assert memory == 0


def test_no_other_file_of_a_process_is_opened(saved, hold, tmp_path):
    path, _ = saved
    hold(name="other memory")
    assert load(path)[1] == 0
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        hold(descriptor=pipe)
        assert load(path)[1] == 0
    finally:
        os.close(pipe)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", "null", json.dumps({"files": 3}), "[" * 10**5, "1" * 10**6]
)
def test_rubbish_is_no_record(saved, text):
    path, state = saved
    held_dir(path.parent).mkdir()
    (held_dir(path.parent) / "7.json").write_text(text)
    (held_dir(path.parent) / "8.json").symlink_to("/dev/zero")
    (held_dir(path.parent) / "9.json").mkdir()
    assert same(load(path)[0], state)


def test_offsets_behind_the_end_of_the_memory_are_not_read(saved, hold):
    path, state = saved
    entries = DirectoryReader(path).manifest.files
    hold(files={entry.xxh3_128: (2**70, entry.size) for entry in entries})
    found, memory, _ = load(path)
    assert same(found, state)
    assert memory == 0


def test_a_release_deletes_records_only_and_nothing_through_a_link(saved, hold, tmp_path):
    path, _ = saved
    hold()
    draft, other = held_dir(path.parent) / ".7.json.part", held_dir(path.parent) / "notes.txt"
    draft.write_text("")
    other.write_text("mine")
    release_held_images(path.parent)
    assert [*held_dir(path.parent).iterdir()] == [other]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "7.json").write_text("mine")
    other.unlink()
    held_dir(path.parent).rmdir()
    held_dir(path.parent).symlink_to(elsewhere)
    release_held_images(path.parent)
    assert (elsewhere / "7.json").read_text() == "mine"


def test_a_released_image_is_found_no_more(saved, hold):
    path, _ = saved
    hold()
    assert [image.checkpoint_id for image in held_images(path.parent)] == [path.name]
    release_held_images(path.parent)
    assert held_images(path.parent) == []
