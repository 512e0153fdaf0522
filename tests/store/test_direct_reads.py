"""Reads past the page cache give the bytes of the file, into memory of any address."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from dataclasses import replace

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_entries import FileEntry
from bt_lightning.manifest import Manifest
from bt_lightning.store.transfer import files_reader
from bt_lightning.store.transfer.checkpoint_reader import read_verified
from bt_lightning.store.transfer.direct_reads import (
    PAGE,
    NoDirectReads,
    is_cached,
    open_direct,
    read_direct,
)
from bt_lightning.store.transfer.files_reader import FilesReader
from bt_lightning.store.transfer.fresh_memory import address_of, fresh_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="direct reads are Linux's")
SIZE = 3 * 1024 * 1024 + 5
BLOCK = 1024 * 1024


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "a.bin"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def direct(file):
    descriptor = os.open(file, os.O_RDONLY)
    try:
        found = open_direct(descriptor)
    except NoDirectReads:
        pytest.skip("no direct reads on this file system")
    finally:
        os.close(descriptor)
    yield found
    os.close(found)


def _leave_the_cache(path):
    """The page cache has no page of the file afterwards."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


@settings(max_examples=60, deadline=None)
@given(
    first=st.integers(0, 500),
    sizes=st.lists(st.integers(0, 5 * 64 * 1024), max_size=12),
    shifts=st.lists(st.sampled_from([0, 0, 1, 64, 4095]), min_size=12, max_size=12),
)
def test_any_targets_are_filled(file_bytes, first, sizes, shifts):
    data, path = file_bytes
    offset, at, targets = first * PAGE, 0, []
    for size, shift in zip(sizes, shifts, strict=False):
        targets.append(fresh_memory(max(size, 1), offset + at + shift)[:size])
        at += size
    descriptor = os.open(path, os.O_RDONLY)
    try:
        found = open_direct(descriptor)
        try:
            count = read_direct(found, offset, targets, fresh_memory(-(-at // PAGE) * PAGE or PAGE))
        finally:
            os.close(found)
    except NoDirectReads:
        pytest.skip("no direct reads on this file system")
    finally:
        os.close(descriptor)
    there = data[offset : offset + at]
    assert count == len(there)
    assert b"".join(targets)[:count] == there


@pytest.fixture(scope="module")
def file_bytes(file):
    return file.read_bytes(), file


def test_pages_of_memory_that_lies_as_the_file_does_are_not_copied(direct, file):
    memory = fresh_memory(SIZE, 0)
    assert address_of(memory) % PAGE == 0
    buffer = fresh_memory(-(-SIZE // PAGE) * PAGE)
    assert read_direct(direct, 0, [memory], buffer) == SIZE
    assert bytes(memory) == file.read_bytes()
    whole = SIZE // PAGE * PAGE
    assert bytes(buffer[:whole]) == bytes(whole)  # nothing but the last page went through it


def test_what_is_in_the_page_cache_is_told(file):
    descriptor = os.open(file, os.O_RDONLY)
    try:
        file.read_bytes()
        assert is_cached(descriptor, 0, SIZE)
        _leave_the_cache(file)
        assert not is_cached(descriptor, 0, SIZE)
    finally:
        os.close(descriptor)


def _entry(path):
    data = path.read_bytes()
    blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    digests = tuple(xxhash.xxh3_128_hexdigest(block) for block in blocks)
    return FileEntry(path=path.name, size=len(data), xxh3_128="", blocks=digests, block_bytes=BLOCK)


def _reader(path, entry):
    manifest = Manifest(step=0, epoch=0, created_at="2030-01-02T03:04:05+00:00", generation=1,
                        checkpoint_id="a", files=(entry,))  # fmt: skip
    return FilesReader(path.parent, manifest)


@pytest.mark.parametrize("cached", [False, True])
def test_a_reader_reads_what_is_not_cached_past_the_cache(file, cached, monkeypatch):
    reads = []

    def noted(direct, offset, targets, buffer):
        reads.append(offset)
        return read_direct(direct, offset, targets, buffer)

    monkeypatch.setattr(files_reader, "read_direct", noted)
    entry, memory = _entry(file), fresh_memory(SIZE)
    with _reader(file, entry) as reader:
        if not cached:
            _leave_the_cache(file)
        read_verified(reader, entry, 0, [memory])
    assert bytes(memory) == file.read_bytes()
    descriptor = os.open(file, os.O_RDONLY)
    supported = bool(os.major(os.fstat(descriptor).st_dev))
    os.close(descriptor)
    assert reads == ([0] if supported and not cached else [])


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOMEM, errno.EIO])
def test_what_cannot_be_read_directly_is_read_through_the_cache(file, code, monkeypatch):
    real, lengths = os.preadv, []

    def refuse(descriptor, buffers, offset):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            lengths.append(len(buffers))
            raise OSError(code, os.strerror(code))
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", refuse)
    entry, memory = _entry(file), fresh_memory(SIZE)
    with _reader(file, entry) as reader:
        _leave_the_cache(file)
        read_verified(reader, entry, 0, [memory])
    assert len(lengths) <= 1  # it is not tried again
    assert bytes(memory) == file.read_bytes()


def test_a_changed_byte_is_found_past_the_cache(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(os.urandom(2 * BLOCK))
    entry = _entry(path)
    with path.open("r+b") as file:
        file.seek(BLOCK + 7)
        byte = file.read(1)[0]
        file.seek(BLOCK + 7)
        file.write(bytes([byte ^ 1]))
    with _reader(path, entry) as reader:
        _leave_the_cache(path)
        with pytest.raises(CheckpointCorruptError, match="damaged"):
            read_verified(reader, entry, 0, [fresh_memory(2 * BLOCK)])


def test_a_file_that_ends_early_is_damaged(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(os.urandom(3 * BLOCK))
    entry = _entry(path)
    with _reader(path, entry) as reader:
        reader.check(entry)  # opens it
        os.truncate(path, BLOCK + 5 * PAGE)
        _leave_the_cache(path)
        with pytest.raises(CheckpointCorruptError, match="ends early"):
            reader.read_into(entry, 0, [fresh_memory(3 * BLOCK)])


def test_blocks_of_another_size_are_read(tmp_path):
    """The offset of a range need not be one of a page in a file of another program."""
    path = tmp_path / "a.bin"
    path.write_bytes(os.urandom(2 * BLOCK))
    entry = replace(_entry(path))
    with _reader(path, entry) as reader:
        _leave_the_cache(path)
        memory = fresh_memory(BLOCK + 100)
        reader.read_into(entry, 77, [memory])
    assert bytes(memory) == path.read_bytes()[77 : 77 + BLOCK + 100]
