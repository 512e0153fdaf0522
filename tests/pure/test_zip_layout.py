"""The layout of zip files: against what torch wrote, and read by programs that know only zip."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.zip_layout import directory, fill_checksums, place_records

GIB4 = 2**32


def image(contents, alignment=64):
    """A whole file without CRCs."""
    records = place_records([(name, len(data)) for name, data in contents.items()], alignment)
    out = bytearray()
    for record, data in zip(records, contents.values(), strict=True):
        assert len(out) == record.header
        out += record.local_header
        assert len(out) == record.start
        assert record.start % alignment == 0
        out += data + record.descriptor()
        assert len(out) == record.end
    return out + directory([record.entry() for record in records], len(out))


def filled(contents, alignment=64):
    made = image(contents, alignment)
    view = memoryview(made)

    def write(offset, data):
        view[offset : offset + len(data)] = data

    fill_checksums(view, write)
    return made


names = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FFF), min_size=1, max_size=40)


@given(
    st.dictionaries(names.map(lambda name: f"a/{name}".encode()), st.binary(max_size=300)),
    st.sampled_from([1, 16, 64, 4096]),
)
def test_any_records_are_read_back_with_right_checksums(contents, alignment):
    made = filled(contents, alignment)
    with zipfile.ZipFile(io.BytesIO(made)) as file:
        assert file.testzip() is None
        assert [info.filename for info in file.infolist()] == [n.decode() for n in contents]
        for info in file.infolist():
            assert file.read(info) == contents[info.filename.encode()]
    again = []
    fill_checksums(memoryview(made), lambda *written: again.append(written))
    assert again == []


def test_a_changed_byte_is_found_by_others():
    made = filled({b"a/x": b"some content", b"a/y": b""})
    made[made.index(b"some")] ^= 1
    with zipfile.ZipFile(io.BytesIO(made)) as file:
        assert file.testzip() == "a/x"


@pytest.mark.skipif(shutil.which("unzip") is None, reason="there is no unzip")
def test_unzip_finds_no_fault(tmp_path):
    (tmp_path / "x.pt").write_bytes(filled({b"x/a": b"1" * 10_000, b"x/b": b"", b"x/c": b"2"}))
    unzip = subprocess.run(
        ["unzip", "-t", tmp_path / "x.pt"], check=True, capture_output=True, text=True
    )
    assert "No errors" in unzip.stdout


@pytest.mark.parametrize("cut", [1, 22, 60, 200])
def test_what_is_no_such_file_is_refused(cut):
    with pytest.raises(CheckpointCorruptError):
        fill_checksums(memoryview(filled({b"x/a": b"1" * 100})[:-cut]), lambda *_: None)


def test_a_record_that_reaches_into_the_directory_is_refused():
    made = filled({b"x/a": b"1" * 100})
    at = made.index(b"PK\1\2") + 20
    made[at : at + 4] = (5000).to_bytes(4, "little")
    with pytest.raises(CheckpointCorruptError, match="directory"):
        fill_checksums(memoryview(made), lambda *_: None)


BEYOND = [
    (b"archive/data.pkl", 420),
    (b"archive/.format_version", 1),
    (b"archive/.storage_alignment", 2),
    (b"archive/byteorder", 6),
    (b"archive/data/0", 12),
    (b"archive/data/1", GIB4 + 100),
    (b"archive/data/2", 20),
    (b"archive/data/3", 0),
    (b"archive/data/4", 28),
    (b"archive/version", 2),
    (b"archive/.data/serialization_id", 40),
]
"""The records of a `torch.save` of tensors of 12, 2**32 + 100, 20, 0 and 28 bytes."""
WRITTEN_BY_TORCH = "887d2fb7b6efa4395f08609a4144d2044c41202f8016bd0869f47f397dcc4d52"


def test_beyond_4_gib_every_header_is_as_torch_2_13_wrote_it():
    """A hash of all that was not content, and some of it, with CRCs switched off."""
    records = place_records(BEYOND, 64)
    by_name = {record.name.rpartition(b"/")[2]: record for record in records}
    assert [by_name[name].start for name in (b"1", b"2", b"3", b"version")] == [
        1088, 4294968576, 4294968704, 4294968896,
    ]  # fmt: skip
    assert by_name[b"1"].descriptor().hex() == "504b070800000000" + 2 * "6400000001000000"
    assert by_name[b"2"].local_header[-24:].hex() == "01000800bc0400000100000046420800" + 8 * "5a"
    assert by_name[b"3"].descriptor() == b""
    end = directory([record.entry() for record in records], records[-1].end)
    assert records[-1].end + len(end) == 4294969969
    assert end[-22:].hex() == "504b0506000000000b000b000f030000ffffffff0000"
    parts = [part for each in records for part in (each.local_header, each.descriptor())]
    assert hashlib.sha256(b"".join(parts) + end).hexdigest() == WRITTEN_BY_TORCH


def test_more_records_than_the_short_field_counts():
    made = filled({b"a/%d" % number: b"x" for number in range(70_000)}, 1)
    with zipfile.ZipFile(io.BytesIO(made)) as file:
        assert len(file.infolist()) == 70_000
        assert file.read("a/69999") == b"x"


def test_a_record_may_begin_at_any_place_that_padding_reaches():
    from dataclasses import replace

    (record,) = place_records([(b"a/x", 5)], 64)
    assert record.is_well_placed
    assert not replace(record, start=record.header + 36).is_well_placed
    assert replace(record, start=record.header + 30 + 3 + 4).is_well_placed
    assert replace(record, start=record.header + 30 + 3 + 0xFFFF).is_well_placed
    assert not replace(record, start=record.header + 30 + 3 + 0x10000).is_well_placed
