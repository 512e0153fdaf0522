"""Bytes of files to their places: directly, through buffers, several times, on a device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_entries import BLOCK_BYTES, FileEntry
from bt_lightning.manifest import Manifest
from bt_lightning.restore.load_to_device import DeviceMemory
from bt_lightning.restore.read_boxes import BytesPlace, read_boxes
from bt_lightning.sharding.boxes import Box
from bt_lightning.sharding.read_plan import copy_of
from bt_lightning.store.transfer.checkpoint_reader import read_verified
from bt_lightning.store.transfer.files_reader import FilesReader

COLUMNS = 6000
ROWS = 1500
"""Of a matrix of int16 in a file of some blocks."""
AT = 70_000
DEVICES = [None, DeviceMemory(torch.device("cpu"))]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    """A file with a matrix behind other bytes, and the matrix."""
    whole = np.random.default_rng(0).integers(-9999, 9999, (ROWS, COLUMNS), np.int16)
    path = tmp_path_factory.mktemp("file") / "a"
    path.write_bytes(bytes(AT) + whole.tobytes() + b"end")
    return path, whole


class Files:
    """The file alone; `front` are its first blocks that are in memory."""

    def __init__(self, path, front=0):
        data = path.read_bytes()
        blocks = [data[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES)]
        digests = tuple(xxhash.xxh3_128_hexdigest(block) for block in blocks)
        self._entry = FileEntry(path=path.name, size=len(data), xxh3_128="", blocks=digests)
        manifest = Manifest(step=0, epoch=0, created_at="2030-01-02T03:04:05+00:00", generation=1,
                            checkpoint_id="a", files=(self._entry,))  # fmt: skip
        self.reader = FilesReader(path.parent, manifest)
        self.piece_bytes, self.connections = 2 * BLOCK_BYTES, 2
        self.gap_bytes = 0
        self._front = bytearray(data[: front * BLOCK_BYTES])
        self.blocks = []

    def entry(self, _):
        return self._entry

    def front(self, _):
        return memoryview(self._front)

    def expect(self, entry, offset, size):
        pass

    def read_blocks(self, entry, offset, targets):
        size = sum(map(len, targets))
        self.blocks += range(offset // BLOCK_BYTES, -(-(offset + size) // BLOCK_BYTES))
        read_verified(self.reader, entry, offset, targets)


@st.composite
def boxes(draw):
    edges = [sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in (ROWS, COLUMNS)]
    return Box(tuple(a for a, _ in edges), tuple(b - a for a, b in edges))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(boxes(), min_size=1, max_size=4), st.sampled_from(DEVICES), st.integers(0, 2))
def test_each_box_gets_its_bytes_and_each_block_is_read_once(matrix, wanted, memory, front):
    path, whole = matrix
    files, places, parts = Files(path, front), [], []
    for box in wanted:
        copy = copy_of(Box((0, 0), (ROWS, COLUMNS)), box, AT, 2)
        made = torch.full(box.sizes, -12345, dtype=torch.int16)
        parts.append((box, made))
        if copy is not None:
            places.append(BytesPlace(copy, made))
    with files.reader:
        read = read_boxes(files, {"a": places}, memory)
    for box, made in parts:
        (top, left), (bottom, right) = box.offsets, box.ends
        assert np.array_equal(made.numpy(), whole[top:bottom, left:right])
    assert len(files.blocks) == len(set(files.blocks))
    assert not set(files.blocks) & set(range(front))
    assert read <= len(files.blocks) * BLOCK_BYTES


@pytest.mark.parametrize("memory", DEVICES, ids=["host", "buffers"])
def test_damage_is_found_wherever_it_is_in_a_block(memory, matrix, tmp_path):
    path, _ = matrix
    data = bytearray(path.read_bytes())
    files = Files(path)
    data[AT + 2 * COLUMNS * (ROWS - 1) - 1] ^= 1  # in the block of the last row, not in that row
    (tmp_path / "a").write_bytes(data)
    files.reader = FilesReader(tmp_path, files.reader.manifest)
    copy = copy_of(Box((0, 0), (ROWS, COLUMNS)), Box((ROWS - 1, 0), (1, 10)), AT, 2)
    place = BytesPlace(copy, torch.empty(1, 10, dtype=torch.int16))
    with files.reader, pytest.raises(CheckpointCorruptError, match="4 MiB"):
        read_boxes(files, {"a": [place]}, memory)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_device_and_the_host_at_once(matrix):
    path, whole = matrix
    files, places = Files(path), []
    for box, device in [
        (Box((3, 100), (1400, 777)), "cuda"),
        (Box((0, 0), (ROWS, COLUMNS)), "cuda"),
        (Box((7, 5), (11, 13)), "cpu"),
    ]:
        copy = copy_of(Box((0, 0), (ROWS, COLUMNS)), box, AT, 2)
        made = torch.zeros(box.sizes, dtype=torch.int16, device=device)
        places.append((box, BytesPlace(copy, made)))
    with files.reader:
        read_boxes(files, {"a": [place for _, place in places]})
    for box, place in places:
        (top, left), (bottom, right) = box.offsets, box.ends
        assert np.array_equal(place.memory.cpu().numpy(), whole[top:bottom, left:right])
    assert len(files.blocks) == len(set(files.blocks))
