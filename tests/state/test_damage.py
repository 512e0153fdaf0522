"""Bytes that changed are seen, wherever they are, and the file is named."""

from __future__ import annotations

import os

import pytest
import torch
from state_tools import Foreign, same

from bt_lightning import BTCheckpointIO, CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.path_layout import LEFTOVERS, MANIFEST, STATE, TREE, WEIGHTS

FILES = [WEIGHTS, STATE, TREE, LEFTOVERS]


@pytest.fixture
def saved(place):
    state = {
        "epoch": 1,
        "state_dict": {"w": torch.arange(1000.0), "b": torch.ones(3, dtype=torch.bfloat16)},
        "optimizer_states": [{"state": {0: {"m": torch.ones(10)}}}],
        "x": Foreign(3),
    }
    with pytest.warns(UserWarning, match="saved with pickle"):
        BTCheckpointIO().save_checkpoint(state, place)
    return place, state


def _load(place):
    return BTCheckpointIO().load_checkpoint(place, weights_only=False)


def _flip(file, position):
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_seen_wherever_it_is(name, saved):
    place, _ = saved
    file = place / name
    good = file.read_bytes()
    size = len(good)
    for position in sorted(
        {*range(0, size, max(1, size // 25)), 0, 1, 7, 8, 9, size // 2, size - 1}
    ):
        _flip(file, position)
        with pytest.raises(CheckpointCorruptError, match=name):
            _load(place)
        file.write_bytes(good)
    same(saved[1], _load(place))


def test_a_flipped_bit_of_the_manifest_is_seen_wherever_it_is(saved):
    place, _ = saved
    good = (place / MANIFEST).read_bytes()
    for position in range(0, len(good), 5):
        _flip(place / MANIFEST, position)
        with pytest.raises(CheckpointCorruptError, match=str(place)):
            _load(place)
        (place / MANIFEST).write_bytes(good)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_or_longer_is_refused(name, saved):
    place, _ = saved
    good = (place / name).read_bytes()
    for content in (b"", good[:7], good[:9], good[: len(good) // 2], good[:-1], good + b"\x00"):
        (place / name).write_bytes(content)
        with pytest.raises(CheckpointCorruptError, match=name):
            _load(place)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_gone_is_named(name, saved):
    place, _ = saved
    (place / name).unlink()
    with pytest.raises(CheckpointCorruptError, match=f"{name} is missing"):
        _load(place)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_place_of_a_file_is_refused(name, saved):
    place, _ = saved
    (place / name).unlink()
    (place / name).mkdir()
    with pytest.raises(CheckpointCorruptError, match=name):
        _load(place)


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_in_place_of_a_file_does_not_hang_the_load(name, saved, monkeypatch):
    """Opening a pipe waits for a writer: a check of the size must come first."""
    place, _ = saved
    (place / name).unlink()
    os.mkfifo(place / name)
    other = os.open(place / name, os.O_RDWR | os.O_NONBLOCK)  # a writer, so that a failure ends
    os.write(other, b"x")
    try:
        import signal

        def alarm(*_):
            raise TimeoutError

        before = signal.signal(signal.SIGALRM, alarm)
        signal.setitimer(signal.ITIMER_REAL, 3)
        try:
            with pytest.raises(CheckpointCorruptError, match=name):
                _load(place)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    finally:
        os.close(other)


def test_a_manifest_that_is_cut_is_refused(saved):
    place, _ = saved
    good = (place / MANIFEST).read_bytes()
    for content in (
        b"",
        good[:10],
        good[: len(good) // 2],
        good[:-3],
        b"[]",
        b"\xff",
        b"{" * 100_000,
    ):
        (place / MANIFEST).write_bytes(content)
        with pytest.raises(CheckpointCorruptError):
            _load(place)


def test_without_a_manifest_nothing_is_committed(saved):
    place, _ = saved
    (place / MANIFEST).unlink()
    with pytest.raises(CheckpointNotFoundError, match=MANIFEST):
        _load(place)


def test_a_path_with_nothing_there_is_said_to_be_empty(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="nothing-here"):
        BTCheckpointIO().load_checkpoint(tmp_path / "nothing-here")


def test_a_file_that_the_manifest_does_not_name_is_ignored(saved):
    place, state = saved
    (place / "notes.txt").write_text("hello")
    same(state, _load(place))


def test_files_of_two_checkpoints_are_not_mixed(saved, tmp_path):
    place, state = saved
    state["state_dict"]["w"] += 1
    with pytest.warns(UserWarning, match="saved with pickle"):
        BTCheckpointIO().save_checkpoint(state, tmp_path / "other")
    (place / WEIGHTS).write_bytes((tmp_path / "other" / WEIGHTS).read_bytes())
    with pytest.raises(CheckpointCorruptError, match=WEIGHTS):
        _load(place)
