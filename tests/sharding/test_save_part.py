"""A part record: what is read is what was written, or it is refused as damaged."""

from __future__ import annotations

import json

import pytest

from bt_lightning.errors import CheckpointCorruptError, FormatVersionError, UnsupportedStateError
from bt_lightning.file_entries import BLOCK_BYTES, FileEntry
from bt_lightning.manifest import ManifestFacts
from bt_lightning.sharding.save_part import PartRecord, SaveHead, SaveKey, SavePart, seal

DIGEST = "0123456789abcdef" * 2


def example_record(**changes: object) -> PartRecord:
    facts = ManifestFacts(
        step=7,
        epoch=1,
        created_at="2030-01-02T03:04:05+00:00",
        metrics={"loss": float("nan"), "acc": 0.5},
        origin={"job": "j", "shards": {"world_size": 4}},
        leftovers=(("a.b", "numpy.ndarray"),),
    )
    part = SavePart(key=SaveKey("ab" * 16, 3), rank=0, world_size=4, fingerprint=DIGEST)
    files = tuple(
        FileEntry(path=path, size=BLOCK_BYTES + 1, xxh3_128=DIGEST, blocks=(DIGEST, DIGEST))
        for path in ("shard-00000-of-00004.safetensors", "ranks/00000.json")
    )
    head = SaveHead(checkpoint_id="a/checkpoint-7", after=2, facts=facts)
    given = {"part": part, "host": "node-1", "files": files, "head": head, "missing": ""}
    return PartRecord(**{**given, **changes})


def parse(data: bytes) -> PartRecord:
    return PartRecord.from_bytes(data, "here")


@pytest.mark.parametrize(
    "record",
    [
        example_record(),
        example_record(head=None),
        example_record(host="node-ä"),
        example_record(files=(), missing="the disk is full"),
    ],
)
def test_what_is_read_is_what_was_written(record: PartRecord) -> None:
    data = record.to_bytes()
    assert repr(parse(data)) == repr(record)
    assert parse(data).to_bytes() == data
    assert data.isascii()


def test_every_bit_flip_and_every_truncation_is_refused() -> None:
    good = example_record().to_bytes()
    for place in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[place] ^= 1 << bit
            with pytest.raises(CheckpointCorruptError, match="here"):
                parse(bytes(bad))
        if place < len(good) - 1:
            with pytest.raises(CheckpointCorruptError):
                parse(good[:place])


def edited(**changes: object) -> bytes:
    document = json.loads(example_record().to_bytes())
    return seal({**document, **changes})


FILE = json.loads(example_record().to_bytes())["files"][0]
HEAD = json.loads(example_record().to_bytes())["head"]
BAD = {
    "format": ["bt_lightning.shards", None],
    "version": [0, True, None],
    "run": ["../../x", "AB" * 16, "ab" * 15, None, 3],
    "number": [0, -1, 1.0, True],
    "rank": [4, -1, None],
    "world_size": [0, 10**6, None],
    "fingerprint": ["", None],
    "host": [None, 1],
    "files": [
        None,
        [FILE, FILE],
        [{**FILE, "path": "../x"}],
        [{**FILE, "path": "/x"}],
        [{**FILE, "blocks": []}],
        [{**FILE, "size": -1}],
        [{**FILE, "path": "a"}, {**FILE, "path": "a/b"}],
        [None],
    ],
    "head": [
        [],
        {},
        {**HEAD, "id": "../x"},
        {**HEAD, "id": ".bt_lightning/x"},
        {**HEAD, "after": -1},
        {**HEAD, "facts": {}},
        {**HEAD, "facts": {**HEAD["facts"], "created_at": "yesterday"}},
    ],
    "missing": [None, ["x"]],
}


@pytest.mark.parametrize("change", [{key: bad} for key in BAD for bad in BAD[key]], ids=repr)
def test_a_record_that_no_rank_writes_is_refused(change: dict[str, object]) -> None:
    """Though its digest is right: paths and runs in it name folders."""
    with pytest.raises(CheckpointCorruptError, match="part record here"):
        parse(edited(**change))


def test_a_newer_version_is_said_to_be_newer() -> None:
    with pytest.raises(FormatVersionError, match="here"):
        parse(edited(version=3))


def test_a_record_that_no_reader_takes_is_not_written() -> None:
    """A part that is durable and unreadable would be waited for until the deadline."""
    count = 2**21
    entry = FileEntry(path="a", size=count * BLOCK_BYTES, xxh3_128=DIGEST, blocks=(DIGEST,) * count)
    with pytest.raises(UnsupportedStateError, match="rank 0 cannot save its part"):
        example_record(files=(entry,)).to_bytes()
