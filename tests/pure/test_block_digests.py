"""Digests of blocks as bytes: the same texts as before, in a third of the room."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bt_lightning.block_digests import BlockDigests
from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_entries import BLOCK_BYTES, FileEntry
from bt_lightning.manifest import Manifest, ManifestFacts
from bt_lightning.sharding.save_part import seal

relaxed = settings(deadline=None, database=None)
texts = st.lists(st.integers(0, 2**128 - 1).map(lambda number: f"{number:032x}"), max_size=8)


@relaxed
@given(texts, st.slices(8))
def test_they_are_what_a_tuple_of_the_texts_is(digests, part):
    packed = BlockDigests.of(digests)
    assert packed == tuple(digests)
    assert tuple(digests) == packed
    assert packed == BlockDigests.of(packed)
    assert [*packed] == digests
    assert packed[part] == tuple(digests)[part]
    assert len(packed) == len(digests)
    assert hash(packed) == hash(tuple(digests))
    assert repr(packed) == repr(tuple(digests))
    assert BlockDigests.unpack(packed.packed) == packed
    assert pickle.loads(pickle.dumps(packed)) == packed
    assert packed != digests
    with pytest.raises(IndexError):
        packed[len(digests)]


@pytest.mark.parametrize("text", ["A", "AAAA", "=" * 24, "A" * 21 + "B==", "A" * 22, "é" * 24, " "])
def test_a_text_that_is_not_of_digests_is_refused(text):
    with pytest.raises(ValueError, match="expected digests"):
        BlockDigests.unpack(text)


def sharded(size: int) -> Manifest:
    count = -(-size // BLOCK_BYTES)
    blocks = BlockDigests(bytes(range(16)) * count)
    files = (
        FileEntry(
            path="shard-00000-of-00001.safetensors", size=size, xxh3_128="0" * 32, blocks=blocks
        ),
        FileEntry(path="shards.json", size=0, xxh3_128="0" * 32, blocks=()),
    )
    facts = ManifestFacts(step=1, epoch=0, created_at="2030-01-02T03:04:05+00:00")
    return facts.manifest("checkpoint-1", 1, files)


def test_a_sharded_checkpoint_of_eleven_terabytes_has_a_manifest():
    """Each block of 4 MiB has a digest: 2.6 million of them."""
    manifest = sharded(11 * 10**12)
    data = manifest.to_bytes()
    assert len(data) < 64 * 2**20
    again = Manifest.from_bytes(data, "here")
    assert again == manifest
    assert again.files[0].blocks[-1] == "000102030405060708090a0b0c0d0e0f"


@pytest.mark.parametrize("blocks", ["", [], ["0" * 32], None, "AAAA", 3])
def test_blocks_that_are_not_those_of_the_size_are_damage(blocks):
    document = json.loads(sharded(BLOCK_BYTES + 1).to_bytes())
    document["files"][0]["blocks"] = blocks
    del document["digest"]
    with pytest.raises(CheckpointCorruptError, match="here"):
        Manifest.from_bytes(seal(document), "here")
