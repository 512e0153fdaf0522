"""One pass over a stream gives the digest of the whole and of each block, however it is cut."""

from __future__ import annotations

import mmap
import random

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from bt_lightning.file_entries import BLOCK_BYTES
from bt_lightning.localdir import digest
from bt_lightning.localdir.digest import Hasher, digest_file

relaxed = settings(deadline=None, database=None)
BLOCK = 16


def expected(data: bytes, block: int) -> tuple[int, str, tuple[str, ...]]:
    blocks = (data[start : start + block] for start in range(0, len(data), block))
    return (
        len(data),
        xxhash.xxh3_128_hexdigest(data),
        tuple(xxhash.xxh3_128_hexdigest(part) for part in blocks),
    )


@relaxed
@given(st.lists(st.binary(max_size=3 * BLOCK), max_size=8))
def test_how_a_stream_is_cut_into_pieces_changes_nothing(pieces):
    hasher = Hasher(BLOCK)
    for piece in pieces:
        hasher.update(piece)
    entry = hasher.entry("a/b")
    assert (entry.size, entry.xxh3_128, entry.blocks) == expected(b"".join(pieces), BLOCK)
    assert (entry.path, entry.block_bytes) == ("a/b", BLOCK)


@pytest.mark.parametrize("block", [BLOCK_BYTES >> shift for shift in range(11)])
def test_blocks_of_every_size_have_their_digests(block):
    """Pieces larger than what is hashed at once, and cuts inside blocks."""
    data = random.Random(0).randbytes(2 * BLOCK_BYTES + 12_345)
    hasher = Hasher(block)
    for begin, end in ((0, 1000), (1000, 1000), (1000, 3_000_001), (3_000_001, len(data))):
        hasher.update(data[begin:end])
    entry = hasher.entry("a")
    assert (entry.size, entry.xxh3_128, entry.blocks) == expected(data, block)


def test_an_empty_stream_has_no_blocks():
    entry = Hasher().entry("empty")
    assert (entry.size, entry.blocks) == (0, ())
    assert entry.xxh3_128 == xxhash.xxh3_128_hexdigest(b"")


def test_any_buffer_of_bytes_can_be_hashed():
    """Tensors arrive as memoryviews of an arena, not as `bytes`."""
    data = bytes(range(256))
    with mmap.mmap(-1, 256) as arena:
        arena[:] = data
        for piece in (data, bytearray(data), memoryview(data), memoryview(arena)[:]):
            hasher = Hasher()
            hasher.update(piece)
            assert hasher.entry("x").xxh3_128 == xxhash.xxh3_128_hexdigest(data)
            if isinstance(piece, memoryview):
                piece.release()


def test_a_file_is_hashed_as_its_bytes_across_reads_of_any_size(tmp_path, monkeypatch):
    monkeypatch.setattr(digest, "READ_BYTES", 7)
    data = bytes(range(100))
    (tmp_path / "f").write_bytes(data)
    entry = digest_file(tmp_path / "f", "name/in/manifest", BLOCK)
    assert (entry.size, entry.xxh3_128, entry.blocks) == expected(data, BLOCK)
    assert entry.path == "name/in/manifest"


def test_a_file_of_a_real_block_and_one_byte_has_two_blocks(tmp_path):
    """With the real size of a block; the file is sparse, so this costs no disk."""
    with (tmp_path / "f").open("wb") as stream:
        stream.truncate(BLOCK_BYTES)
        stream.seek(BLOCK_BYTES)
        stream.write(b"x")
    entry = digest_file(tmp_path / "f", "f")
    zeros = xxhash.xxh3_128()
    for _ in range(64):
        zeros.update(bytes(BLOCK_BYTES // 64))
    assert entry.size == BLOCK_BYTES + 1
    assert entry.blocks == (zeros.hexdigest(), xxhash.xxh3_128_hexdigest(b"x"))
