"""How many bytes of a sharded checkpoint a rank of another mesh reads, counted at the disk."""

from __future__ import annotations

import itertools
from collections import defaultdict

import pytest
import torch

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_entries import BLOCK_BYTES
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import MANIFEST
from bt_lightning.restore.fill_live import fill_module
from bt_lightning.restore.saved_state import open_state
from bt_lightning.store.transfer.files_reader import DirectoryReader
from tests.sharding.rank_tensors import as_rank, empty_parts
from tests.sharding.sharded_checkpoints import by_rows, write_sharded


class Counting(DirectoryReader):
    """Notes which bytes of which file it is asked for."""

    def __init__(self, path):
        super().__init__(path)
        self.ranges = defaultdict(list)

    def read_into(self, entry, offset, targets, on_progress=int):
        self.ranges[entry.path].append((offset, offset + sum(map(len, targets))))
        super().read_into(entry, offset, targets, on_progress)

    @property
    def read_bytes(self):
        return sum(end - begin for each in self.ranges.values() for begin, end in each)

    def read_twice(self):
        """Files of which a byte was read twice."""
        ordered = {path: sorted(each) for path, each in self.ranges.items()}
        return [
            path
            for path, each in ordered.items()
            if any(one[1] > two[0] for one, two in itertools.pairwise(each))
        ]


def weights():
    """48 MB, of which 4 ranks hold 0.9 or 1.2 MB each in a tensor: less than a block of 4 MiB."""
    draw = torch.Generator().manual_seed(5)
    return {
        f"layer.{number}": torch.randint(-99, 99, (900 + 300 * (number % 2), 1024), generator=draw)
        .to(torch.int32)
        for number in range(11)
    }  # fmt: skip


def load(path, rank, count, cut):
    """The rank's reader, and its own bytes; they are compared with those that were saved."""
    with as_rank(rank, (count,)) as mesh, Counting(path) as reader:
        live, expected = empty_parts(weights(), mesh, lambda *_: [cut])
        filled = fill_module(open_state(reader), live)
        for name, part in expected.items():
            assert torch.equal(live[name].to_local(), part), name
        return reader, filled.own_bytes


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Ranks that saved -> the checkpoint, by rows, as FSDP2 cuts."""
    root = tmp_path_factory.mktemp("saved")
    for count in (2, 4):
        state = {"state_dict": weights()}
        write_sharded(root, f"of-{count}", state, by_rows(count), world_size=count)
    return {count: root / f"of-{count}" for count in (2, 4)}


@pytest.mark.parametrize(("before", "now"), [(2, 3), (4, 3), (4, 1), (2, 2), (2, 5)])
def test_a_rank_reads_little_more_than_its_own_rows(saved, before, now):
    """In blocks of 4 MiB, 2 -> 3 would be twice its own bytes and 2 -> 5 four times."""
    for rank in range(now):
        reader, own = load(saved[before], rank, now, 0)
        assert reader.read_bytes <= 1.1 * own
        assert not reader.read_twice()


def test_columns_are_in_every_block_and_each_is_read_once(saved):
    """Runs of 2 KiB of every row: all of a block is verified, so all of the files is read."""
    size = sum(each.nbytes for each in weights().values())
    for rank in range(2):
        reader, own = load(saved[4], rank, 2, 1)
        assert own == size // 2
        assert reader.read_bytes <= 1.01 * size
        assert not reader.read_twice()


def test_blocks_of_four_mebibytes_are_read_as_before(tmp_path):
    """Checkpoints that older versions saved."""
    state = {"state_dict": weights()}
    write_sharded(tmp_path, "a", state, by_rows(2), world_size=2, block_bytes=BLOCK_BYTES)
    manifest = Manifest.from_bytes((tmp_path / "a" / MANIFEST).read_bytes(), "a")
    assert (manifest.format_version, manifest.block_bytes) == (2, BLOCK_BYTES)
    for rank in range(3):
        reader, own = load(tmp_path / "a", rank, 3, 0)
        assert not reader.read_twice()
        assert reader.read_bytes > 1.3 * own


def test_a_long_header_is_read_once(tmp_path):
    """Of long names it is longer than what is read at first."""
    whole = {f"{n}." + "deep." * 40 + "weight": torch.full((2,), n) for n in range(800)}
    write_sharded(tmp_path, "a", {"state_dict": whole}, by_rows(1), world_size=1)
    with as_rank(0, (1,)) as mesh, Counting(tmp_path / "a") as reader:
        live, expected = empty_parts(whole, mesh, lambda *_: [0])
        fill_module(open_state(reader), live)
        assert all(torch.equal(live[name].to_local(), part) for name, part in expected.items())
        (shard,) = (path for path in reader.ranges if path.startswith("shard-"))
        assert len(reader.ranges[shard]) > 1
        assert not reader.read_twice()


def test_a_bit_that_changed_in_the_last_block_is_found_and_named(tmp_path):
    state = {"state_dict": weights()}
    manifest = write_sharded(tmp_path, "a", state, by_rows(2), world_size=2)
    entry = next(each for each in manifest.files if each.path.startswith("shard-00000"))
    file = tmp_path / "a" / entry.path
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    named = rf"16 KiB blocks \[{len(entry.blocks) - 1}\]"
    with pytest.raises(CheckpointCorruptError, match=named):
        load(tmp_path / "a", 1, 3, 0)
