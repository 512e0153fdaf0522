"""Blocks of every size: the rule for sharded checkpoints, what is written, and who refuses what."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace

import pytest
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bt_lightning.block_digests import BlockDigests
from bt_lightning.errors import CheckpointCorruptError, FormatVersionError
from bt_lightning.file_entries import BLOCK_BYTES, FileEntry
from bt_lightning.localdir.digest import Hasher
from bt_lightning.localdir.disk_space import planned
from bt_lightning.localdir.list_and_verify_checkpoints import check_digest, describe_damage
from bt_lightning.manifest import Manifest, ManifestFacts
from bt_lightning.sharding.block_size import LEAST_BYTES, MOST_BLOCKS, block_bytes_of
from bt_lightning.sharding.save_part import PartRecord, SaveKey, SavePart, seal
from bt_lightning.store.transfer.block_verifier import wrong_blocks
from bt_lightning.store.transfer.byte_ranges import ranges, ranges_to_end
from bt_lightning.store.transfer.file_source import FileSource, same_ranges

relaxed = settings(deadline=None, database=None)
SIZES = [BLOCK_BYTES >> shift for shift in range(11)]
FACTS = ManifestFacts(step=1, epoch=0, created_at="2030-01-02T03:04:05+00:00")
SHARD = "shard-00000-of-00001.safetensors"


def described(data: bytes, block_bytes: int = BLOCK_BYTES, path: str = SHARD) -> FileEntry:
    hasher = Hasher(block_bytes)
    hasher.update(data)
    return hasher.entry(path)


def sharded(data: bytes, block_bytes: int) -> Manifest:
    files = (described(data, block_bytes), described(b"{}", block_bytes, "shards.json"))
    return FACTS.manifest("checkpoint-1", 1, files)


# the rule


@relaxed
@given(st.integers(0, 2**44))
@example(2**44)
@example(LEAST_BYTES * MOST_BLOCKS)
@example(LEAST_BYTES * MOST_BLOCKS + 1)
def test_the_rule_gives_the_smallest_size_that_has_few_blocks(total):
    size = block_bytes_of(total)
    assert size in SIZES
    assert LEAST_BYTES <= size <= BLOCK_BYTES
    assert size == BLOCK_BYTES or total <= size * MOST_BLOCKS
    assert size == LEAST_BYTES or total > size // 2 * MOST_BLOCKS


@pytest.mark.parametrize(
    ("total", "size"),
    [(0, 16), (10**9, 16), (1_500_000_000, 32), (80 * 10**9, 2048), (10**12, 4096)],
)
def test_sizes_of_some_checkpoints_in_kib(total, size):
    """Part of the format's page: all versions agree on it, as ranks of one run may differ."""
    assert block_bytes_of(total) == size * 1024


def test_a_manifest_of_small_blocks_stays_below_two_megabytes():
    for total in (LEAST_BYTES * MOST_BLOCKS, 128 * 2**30):
        size = block_bytes_of(total)
        blocks = BlockDigests(random.Random(0).randbytes(16 * -(-total // size)))
        entry = FileEntry(
            path=SHARD, size=total, xxh3_128="0" * 32, blocks=blocks, block_bytes=size
        )
        manifest = FACTS.manifest("a", 1, (entry, described(b"{}", size, "shards.json")))
        data = manifest.to_bytes()
        assert len(data) < 2_000_000
        assert Manifest.from_bytes(data, "here") == manifest
        assert len(data) < planned([total], size)


# manifests and records


@pytest.mark.parametrize("size", SIZES)
def test_manifests_and_records_keep_the_size_of_blocks(size):
    manifest = sharded(random.Random(1).randbytes(100_000), size)
    data = manifest.to_bytes()
    document = json.loads(data)
    assert document["block_bytes"] == size
    assert document["format_version"] == (2 if size == BLOCK_BYTES else 3)
    assert Manifest.from_bytes(data, "here") == manifest
    part = SavePart(key=SaveKey("ab" * 16, 3), rank=1, world_size=4, fingerprint="0" * 32)
    record = PartRecord(part=part.of_state("plan", 7, size), host="a", files=manifest.files)
    assert PartRecord.from_bytes(record.to_bytes(), "there") == record
    version = json.loads(record.to_bytes())["version"]
    assert version == (1 if size == BLOCK_BYTES else 2)


def test_ranks_that_cut_blocks_differently_do_not_commit_together():
    part = SavePart(key=SaveKey("ab" * 16, 3), rank=1, world_size=4, fingerprint="0" * 32)
    states = [part.of_state("plan", 7, size) for size in SIZES]
    assert len({each.fingerprint for each in states}) == len(SIZES)
    assert part.of_state("plan", 7) == part.of_state("plan", 7, BLOCK_BYTES)


def test_manifests_and_records_from_before_are_read_as_they_were():
    """Texts of version 2 and of records of version 1, which do not say the size of blocks."""
    blocks = BlockDigests(bytes(32)).packed
    item = {"path": SHARD, "size": BLOCK_BYTES + 1, "xxh3_128": "0" * 32, "blocks": blocks}
    index = {"path": "shards.json", "size": 0, "xxh3_128": "0" * 32, "blocks": ""}
    manifest = Manifest.from_bytes(
        seal(
            {
                "format": "bt_lightning.checkpoint", "format_version": 2, "id": "a",
                "generation": 1, "step": 1, "epoch": 0,
                "created_at": "2030-01-02T03:04:05+00:00", "metrics": {}, "origin": {},
                "resumable": True, "weights_prefix": "", "leftovers": [],
                "block_bytes": 4194304, "files": [item, index],
            }
        ),
        "here",
    )  # fmt: skip
    assert manifest.block_bytes == BLOCK_BYTES
    assert len(manifest.files[0].blocks) == 2
    record = PartRecord.from_bytes(
        seal(
            {
                "format": "bt_lightning.part", "version": 1, "run": "ab" * 16, "number": 1,
                "rank": 1, "world_size": 2, "fingerprint": "0" * 32, "host": "a",
                "files": [item], "head": None, "missing": "", "cause": "failed",
            }
        ),
        "there",
    )  # fmt: skip
    assert record.part.block_bytes == record.files[0].block_bytes == BLOCK_BYTES


@pytest.mark.parametrize(
    ("version", "size"),
    [
        *((3, size) for size in (BLOCK_BYTES, 12288, 2048, 2 * BLOCK_BYTES, 0, -16384)),
        *((3, size) for size in (16384.0, True, "16384", None)),
        (2, 16384),
        (1, 16384),
    ],
)
def test_a_size_of_blocks_that_no_version_has_is_damage(version, size):
    document = json.loads(sharded(b"a", 16384).to_bytes())
    document |= {"block_bytes": size, "format_version": version}
    with pytest.raises(CheckpointCorruptError, match="here"):
        Manifest.from_bytes(seal(document), "here")
    record = {
        "format": "bt_lightning.part", "version": 2, "run": "ab" * 16, "number": 1, "rank": 1,
        "world_size": 2, "fingerprint": "0" * 32, "host": "a", "block_bytes": size, "files": [],
        "head": None, "missing": "", "cause": "failed",
    }  # fmt: skip
    if size not in SIZES or isinstance(size, float):
        with pytest.raises(CheckpointCorruptError, match="there"):
            PartRecord.from_bytes(seal(record), "there")


def test_small_blocks_without_shards_are_damage_and_are_not_written():
    document = json.loads(sharded(b"a", 16384).to_bytes())
    document["files"] = document["files"][:1]
    with pytest.raises(CheckpointCorruptError, match="format_version"):
        Manifest.from_bytes(seal(document), "here")
    with pytest.raises(ValueError, match=r"\[16384\]"):
        FACTS.manifest("a", 1, (described(b"a", 16384),)).to_bytes()
    mixed = (described(b"a", 16384), described(b"{}", BLOCK_BYTES, "shards.json"))
    with pytest.raises(ValueError, match=r"\[16384, 4194304\]"):
        FACTS.manifest("a", 1, mixed).to_bytes()


def test_a_newer_version_says_to_upgrade():
    """What version 3 says to a reader of versions 1 and 2."""
    document = json.loads(sharded(b"a", 16384).to_bytes())
    with pytest.raises(FormatVersionError, match="upgrade"):
        Manifest.from_bytes(seal({**document, "format_version": 4}), "here")


# reading


@relaxed
@given(st.sampled_from(SIZES[4:]), st.integers(1, 400_000), st.integers(0, 2**32))
def test_a_changed_byte_is_found_in_its_block_however_the_memory_is_cut(size, length, seed):
    rng = random.Random(seed)
    content = bytearray(rng.randbytes(length))
    entry = described(bytes(content), size)
    at = rng.randrange(length)
    content[at] ^= 1
    first = rng.randint(0, at // size) * size
    cuts = sorted(rng.randrange(first, length + 1) for _ in range(4))
    edges = [first, *cuts, length]
    targets = [memoryview(content)[a:b] for a, b in itertools.pairwise(edges)]
    assert wrong_blocks(entry, first, targets) == [at // size]


def test_damage_names_the_size_of_blocks_and_not_all_of_them(tmp_path):
    data = bytes(10**6)
    entry = described(data, 16384)
    (tmp_path / SHARD).write_bytes(data)
    check_digest(tmp_path, entry)
    (tmp_path / SHARD).write_bytes(data[:-1] + b"x")
    with pytest.raises(CheckpointCorruptError, match=r"16 KiB blocks \[61\]"):
        check_digest(tmp_path, entry)
    with FileSource(tmp_path / SHARD, entry) as source:
        with source.hold(0, 61 * 16384):
            pass
        with pytest.raises(CheckpointCorruptError, match="16 KiB block 61"), source.hold(0, 10**6):
            pass
    found = described(b"x" * 10**6, 16384)
    assert "18, 19] and 42 more" in describe_damage("here", entry, found)


@relaxed
@given(
    st.sampled_from(SIZES[:9]), st.sets(st.integers(0, 200)), st.integers(1, 9), st.integers(0, 5)
)
def test_ranges_cover_the_blocks_and_no_gap_that_is_too_wide(size, wanted, most, gap):
    entry = FileEntry(
        path="a", size=201 * size - 3, xxh3_128="", blocks=("",) * 201, block_bytes=size
    )
    found = [*ranges(entry, sorted(wanted), most * size, gap * size)]
    covered = [x for r in found for x in range(r.offset // size, -(-(r.offset + r.size) // size))]
    assert covered == sorted(set(covered))
    assert wanted <= set(covered)
    assert all(r.size <= most * size and r.offset % size == 0 for r in found)
    for extra in set(covered) - wanted:
        before = max(x for x in wanted if x < extra)
        after = min(x for x in wanted if x > extra)
        assert after - before - 1 <= gap
    if not gap:
        assert set(covered) == wanted
    whole = [*ranges_to_end(entry, 0, most * size)]
    assert sum(r.size for r in whole) == entry.size


# what is in the store already


@pytest.mark.parametrize("size", SIZES)
def test_unchanged_stretches_of_four_mebibytes_are_not_sent_again(size):
    data = random.Random(2).randbytes(3 * BLOCK_BYTES + 50_000)
    changed = bytearray(data)
    changed[BLOCK_BYTES + 3] ^= 1
    entry, other = described(data, size), described(bytes(changed), size)
    rest = len(data) - 2 * BLOCK_BYTES
    assert same_ranges(other, entry) == ((0, BLOCK_BYTES), (2 * BLOCK_BYTES, rest))
    longer = described(bytes(changed) + bytes(9), size)
    assert same_ranges(longer, entry) == ((0, BLOCK_BYTES), (2 * BLOCK_BYTES, BLOCK_BYTES))
    assert same_ranges(entry, longer) == (((0, BLOCK_BYTES), (2 * BLOCK_BYTES, BLOCK_BYTES)))


def test_the_same_file_with_blocks_of_another_size_is_not_sent_again():
    """A run goes on with a newer version of the package, or with more tensors."""
    data = random.Random(3).randbytes(100_000)
    old, new = described(data), described(data, 16384)
    assert same_ranges(new, old) == same_ranges(old, new) == ((0, 100_000),)
    other = described(data[:-1] + b"x", 16384)
    assert same_ranges(other, old) == ()
    assert same_ranges(replace(new, size=0, xxh3_128=xxhash.xxh3_128_hexdigest(b"")), old) == ()
