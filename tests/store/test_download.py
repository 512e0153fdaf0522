"""What arrives is what was committed, whatever an earlier download left on the disk."""

from __future__ import annotations

import os

import pytest

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_entries import BLOCK_BYTES
from bt_lightning.store.transfer.files_reader import DirectoryReader
from bt_lightning.store.transfer.resumable_download import download_files


class Distant(DirectoryReader):
    """A directory that is asked for long ranges, as a store is."""

    piece_bytes = 3 * BLOCK_BYTES
    gap_bytes = 0


@pytest.fixture(scope="module")
def data():
    return os.urandom(9 * BLOCK_BYTES + 5)


@pytest.fixture
def place(make, tmp_path, data):
    files = {"long": data, "deep/even": data[: 2 * BLOCK_BYTES], "empty": b""}
    with Distant(make(tmp_path / "root", files=files).path) as place:
        yield place


@pytest.mark.parametrize("connections", [1, 3])
@pytest.mark.parametrize(
    "wrong", [(), (0, 1, 2, 4, 5), (0, 1, 2, 3, 4, 9), (9,), (0, 2, 4, 6, 8), tuple(range(10))]
)
def test_what_was_right_stays_right(place, tmp_path, data, wrong, connections):
    """Ranges differ in length: no write may reach beyond its own."""
    place.connections = connections
    left = bytearray(data)
    for block in wrong:
        left[block * BLOCK_BYTES] ^= 1
    target = tmp_path / "target"
    target.mkdir()
    (target / "long").write_bytes(left + b"behind the end")
    fetched = download_files(place, target)
    assert (target / "long").read_bytes() == data
    assert (target / "deep" / "even").read_bytes() == data[: 2 * BLOCK_BYTES]
    assert (target / "empty").read_bytes() == b""
    short = 9 in wrong
    assert fetched == (len(wrong) + 2 - short) * BLOCK_BYTES + 5 * short


def test_a_link_is_not_written_through(place, tmp_path):
    """Nobody but us writes there; whoever did must not make us write elsewhere."""
    target, outside = tmp_path / "target", tmp_path / "outside"
    target.mkdir()
    outside.write_bytes(b"not ours")
    (target / "long").symlink_to(outside)
    with pytest.raises(OSError, match="symbolic link"):
        download_files(place, target)
    assert outside.read_bytes() == b"not ours"


def test_a_source_that_is_damaged_is_said_to_be(place, tmp_path):
    with (tmp_path / "root" / "checkpoint-1" / "long").open("r+b") as stream:
        stream.seek(4 * BLOCK_BYTES)
        stream.write(b"other bytes")
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(CheckpointCorruptError, match=r"blocks \[4\]"):
        download_files(place, target)
