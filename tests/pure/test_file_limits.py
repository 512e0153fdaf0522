"""JSON that anybody may have put there takes the memory that was stated, or is refused."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bt_lightning.errors import CheckpointCorruptError, UnsupportedStateError
from bt_lightning.file_entries import BLOCK_BYTES, FileEntry
from bt_lightning.file_limits import LINE, MANIFEST, MAX_DEPTH, RECORD, Bounds, parse_json
from bt_lightning.manifest import Manifest

_MIB = 2**20
_LIMITED = """
import sys, time
from pathlib import Path
from bt_lightning.file_limits import MANIFEST, parse_json
from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.manifest import Manifest
def peak():
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) // 1024
opening, piece, closing, count = sys.argv[1:5]
data = (opening + piece * int(count) + closing).encode()
try:
    parse_json(data, MANIFEST)
    print("read", peak())
except CheckpointCorruptError as error:
    print("refused", peak())
"""


@pytest.mark.parametrize("value", [None, True, 3, 1.5, "ü€😀", [], {}, {"a": [1, {"b": "c, d"}]}])
def test_what_is_within_the_bounds_is_read(value):
    assert parse_json(json.dumps(value).encode(), LINE) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode(), LINE) == value


@pytest.mark.parametrize("bounds", [MANIFEST, RECORD, LINE])
def test_a_text_of_one_byte_too_many_is_refused_by_its_length_alone(bounds):
    data = b'"' + b"a" * (bounds.size - 2) + b'"'
    assert len(parse_json(data, bounds)) == bounds.size - 2
    with pytest.raises(
        CheckpointCorruptError, match=rf"it has {bounds.size + 1:,} bytes, expected"
    ):
        parse_json(b" " + data, bounds)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1, 900, 5_000, 100_000])
def test_nesting_is_bounded(opening, closing, depth):
    """A tree that parses but cannot be walked raises a `RecursionError` wherever it is walked."""
    text = opening * depth + "1" + closing * depth
    bounds = Bounds(_MIB * 8, _MIB * 80)
    if depth <= MAX_DEPTH:
        assert json.dumps(parse_json(text.encode(), bounds), separators=(",", ":")) == text
        return
    with pytest.raises(CheckpointCorruptError, match="nested more than 100 deep"):
        parse_json(text.encode(), bounds)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"a":1} x', b"9" * 5000, b'"\\ud8'])
def test_what_is_no_json_is_refused_by_one_kind_of_error(data):
    with pytest.raises(CheckpointCorruptError, match="it is no JSON"):
        parse_json(data, LINE)


@pytest.mark.parametrize(
    ("opening", "piece", "closing", "count"),
    [
        ("[0", ",{}", "]", 10_000_000),
        ("[0", ",[]", "]", 10_000_000),
        ("[0", ",0", "]", 16_000_000),
        ('["', "a", '"]', 67_108_000),
        ('["€', "a", '"]', 33_554_000),
        ('["😀', "a", '"]', 8_000_000),
        ("[0", ',{"":{}}', "]", 230_000),
        ("[0", r',"\uffff\uffff"', "]", 1_150_000),
        ("[0", ',"0123456789abcdef0123456789abcdef"', "]", 950_000),
        ("[0", ",1e9", "]", 1_500_000),
        ("[0", ",[[],[]]", "]", 300_000),
    ],
)
def test_no_text_takes_more_than_300_mb_or_5_s(opening, piece, closing, count):
    """Each is the worst that fits, or tries to take gigabytes."""
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, opening, piece, closing, str(count)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert int(done.stdout.split()[1]) < 300, done.stdout


def test_a_manifest_of_three_terabytes_is_written_and_read():
    blocks = ("0123456789abcdef" * 2,) * 750_000
    entry = FileEntry(path="a", size=len(blocks) * BLOCK_BYTES, xxh3_128=blocks[0], blocks=blocks)
    manifest = _manifest(entry)
    assert manifest.size > 3e12
    assert Manifest.from_bytes(manifest.to_bytes(), "here") == manifest


def test_a_manifest_that_no_reader_would_take_is_not_written():
    """Committed and unreadable would be lost."""
    blocks = ("0" * 32,) * 1_200_000
    entry = FileEntry(path="a", size=len(blocks) * BLOCK_BYTES, xxh3_128="0" * 32, blocks=blocks)
    with pytest.raises(UnsupportedStateError, match="checkpoint-1 cannot be saved, its manifest"):
        _manifest(entry).to_bytes()


def test_a_manifest_of_too_many_files_is_refused():
    entry = b'{"path":"a","size":0,"xxh3_128":"00000000000000000000000000000000","blocks":[]},'
    with pytest.raises(CheckpointCorruptError, match="manifest here is damaged: its values"):
        Manifest.from_bytes(b'{"files":[' + entry * 250_000 + b"0]}", "here")


def _manifest(*entries: FileEntry) -> Manifest:
    return Manifest(
        checkpoint_id="checkpoint-1",
        generation=1,
        step=1,
        epoch=0,
        created_at="2030-01-02T03:04:05+00:00",
        files=entries,
    )
