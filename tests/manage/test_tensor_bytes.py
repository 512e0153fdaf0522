"""The bytes of a tensor that is divided: row-major, verified, each read once, in bounded memory."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_entries import BLOCK_BYTES, FileEntry
from bt_lightning.manage import tensor_bytes
from bt_lightning.manage.tensor_bytes import StoredTensor, slabs, whole_bytes
from bt_lightning.manage.verified_blocks import VerifiedBlocks
from bt_lightning.sharding.boxes import Box, chunk, tiles
from bt_lightning.sharding.read_plan import SavedBox
from bt_lightning.store.transfer.checkpoint_reader import NoCopy
from bt_lightning.tensor_files.tensor_headers import Tensor

DTYPES = {"U8": np.uint8, "BF16": np.uint16, "F32": np.uint32, "F64": np.uint64}


class MemoryReader(NoCopy):
    """A checkpoint in memory; counts what is read."""

    name, piece_bytes, connections = "memory", BLOCK_BYTES, 3
    gap_bytes = 0

    def __init__(self, files):
        self.files, self.reads = files, []
        self.blocks = VerifiedBlocks(self, [entry_of(path, files[path]) for path in files])

    def check(self, entry):
        assert entry.size == len(self.files[entry.path])

    def expect(self, entry, offset, size):
        pass

    def read_into(self, entry, offset, targets, on_progress=int):
        for target in targets:
            target[:] = self.files[entry.path][offset : offset + len(target)]
            self.reads.append((entry.path, offset, len(target)))
            offset += len(target)


def entry_of(path, data):
    starts = range(0, len(data), BLOCK_BYTES)
    blocks = tuple(xxhash.xxh3_128_hexdigest(data[at : at + BLOCK_BYTES]) for at in starts)
    digest = xxhash.xxh3_128_hexdigest(data)
    return FileEntry(path=path, size=len(data), xxh3_128=digest, blocks=blocks)


def divided(array, dtype, cuts):
    """A tensor whose dimensions are cut into these numbers of parts; a file for each piece."""
    files, pieces = {}, []
    for at in itertools.product(*map(range, cuts)):
        edges = [chunk(n, p, i) for n, p, i in zip(array.shape, cuts, at, strict=True)]
        box = Box(tuple(a for a, _ in edges), tuple(n for _, n in edges))
        if box.items:
            part = array[tuple(slice(a, a + n) for a, n in edges)]
            path = f"{len(files)}"
            files[path] = b"header" + part.tobytes()
            pieces.append(SavedBox(box, path, 6))
    tensor = Tensor("t", dtype, array.shape, array.nbytes)
    return MemoryReader(files), StoredTensor(tensor, tuple(pieces))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 7), st.integers(1, 4)), max_size=4),
    st.sampled_from(sorted(DTYPES)),
    st.integers(1, 300),
)
def test_any_division_gives_the_bytes_of_the_whole(sides, dtype, slab):
    shape, cuts = [n for n, _ in sides], [p for _, p in sides]
    count = int(np.prod(shape, dtype=int))
    array = (np.arange(count) * 40503 + 7).astype(DTYPES[dtype]).reshape(shape)
    reader, stored = divided(array, dtype, cuts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_bytes, "_LEAST_SLAB", slab)
        patch.setattr(tensor_bytes, "_MOST_SLAB", slab)
        found = b"".join(map(bytes, whole_bytes(reader.blocks, stored)))
    assert found == array.tobytes()


@given(st.lists(st.integers(0, 6), max_size=4), st.integers(1, 100))
def test_slabs_follow_each_other_and_cover_the_tensor(shape, most):
    boxes = list(slabs(shape, 4, most))
    assert tiles(shape, boxes)
    assert boxes == sorted(boxes)
    assert all(box.items * 4 <= max(4, most) for box in boxes)


@pytest.mark.parametrize("cuts", [(5, 1), (1, 5), (2, 3)])
def test_each_block_is_read_about_once(cuts):
    array = np.arange(6_000_000, dtype=np.uint64).reshape(3000, 2000)
    reader, stored = divided(array, "F64", cuts)
    found = xxhash.xxh3_128()
    for part in whole_bytes(reader.blocks, stored):
        found.update(part)
    assert found.digest() == xxhash.xxh3_128_digest(array.tobytes())
    assert sum(size for _, _, size in reader.reads) <= array.nbytes * 1.1


def test_a_changed_byte_and_a_missing_piece_are_damage():
    array = np.arange(4000, dtype=np.uint32).reshape(40, 100)
    reader, stored = divided(array, "F32", (4, 1))
    with pytest.raises(CheckpointCorruptError, match="lacks 1000 of the 4000"):
        list(whole_bytes(reader.blocks, StoredTensor(stored.tensor, stored.boxes[:3])))
    reader.files["2"] = reader.files["2"][:-1] + b"?"
    with pytest.raises(CheckpointCorruptError, match="2"):
        list(whole_bytes(reader.blocks, stored))


def test_more_files_are_read_than_may_be_open(tmp_path):
    """In a process of its own, which may open few."""
    layout = "from tests.sharding.sharded_checkpoints import by_rows, write_sharded"
    code = f"""
import resource, sys
from pathlib import Path
import torch
{layout}
from bt_lightning.cli.app import main
root = Path(sys.argv[1])
write_sharded(root, "c", {{"state_dict": {{"w": torch.arange(600)}}}}, by_rows(300), world_size=300)
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
main(["checkpoints", "verify", "c", "--dir", str(root)])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert "in shards of 300 ranks" in done.stdout
