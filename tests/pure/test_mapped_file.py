"""A mapped file: the bytes of the disk, and errors instead of a signal."""

from __future__ import annotations

import mmap
import os
import sys

import pytest

from bt_lightning.localdir.mapped_file import MappedFile

PAGE = mmap.PAGESIZE
SIZE = 5 * PAGE + 123


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(os.urandom(SIZE))
    return file


@pytest.fixture
def mapped(file):
    with file.open("rb") as stream:
        try:
            mapped = MappedFile(stream.fileno(), SIZE)
        except OSError as error:
            pytest.skip(f"this system cannot: {error}")
    yield mapped
    mapped.close()


def test_ranges_are_those_of_the_file(mapped, file):
    data = file.read_bytes()
    for offset, size in [(0, SIZE), (PAGE, 1), (2 * PAGE, 3 * PAGE + 123), (5 * PAGE, 123)]:
        assert mapped.read(offset, size) == data[offset : offset + size]
        mapped.release(offset, size)
    assert mapped.read(0, SIZE) == data, "what was let go can be read again"


def test_a_file_that_became_shorter_is_an_error_of_the_disk(mapped, file):
    os.truncate(file, PAGE)
    assert mapped.read(0, PAGE) == file.read_bytes()
    with pytest.raises(OSError, match="Input/output error"):
        mapped.read(0, SIZE)


def test_a_view_outlives_the_mapping(mapped, file):
    view = mapped.read(0, SIZE)
    mapped.close()
    assert view == file.read_bytes()


def test_a_file_that_is_shorter_than_it_should_be_cannot_be_mapped(file):
    with file.open("rb") as stream, pytest.raises(OSError, match=r"Input/output|support"):
        MappedFile(stream.fileno(), SIZE + PAGE)


def test_nothing_is_let_go_of_what_is_no_longer_mapped(mapped):
    """Its address may be of other memory by then, and giving that up would empty it."""
    advised = []
    mapped._advise = lambda *arguments: advised.append(arguments)
    mapped.release(0, PAGE)
    mapped.close()
    mapped.release(0, PAGE)
    assert len(advised) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="mapped on Linux only")
def test_an_empty_file_is_refused(tmp_path):
    with (tmp_path / "empty").open("w+b") as stream, pytest.raises(OSError, match="support"):
        MappedFile(stream.fileno(), 0)
