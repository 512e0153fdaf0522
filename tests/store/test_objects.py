"""Objects that no job published: found, pinned to a version, with the checksums of the store."""

from __future__ import annotations

import base64
import hashlib
import uuid
import zlib

import fsspec
import pytest
import s3fs

from bt_lightning.errors import (
    CheckpointNotFoundError,
    InvalidSettingError,
    StorePermanentError,
)
from bt_lightning.store.objects.open_objects import open_objects
from bt_lightning.weights.blob_cache import BlobCache
from bt_lightning.weights.object_source import ObjectSource

BYTES = bytes(range(256)) * 100_000
SMALL = BYTES[:500_000]


@pytest.fixture(params=["weed", "s3"])
def server(request):
    """A server that checks what it is sent, and one that tells more checksums."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def bucket(server):
    filesystem = s3fs.S3FileSystem(skip_instance_cache=True, **server.options)
    return filesystem, f"bucket/{uuid.uuid4().hex}"


def bring(objects, cache, number=0):
    source = ObjectSource(objects)
    file = source.files()[number]
    return cache.bring(
        file.path, file.identity, file.size, lambda place: source.fetch(file, place, int)
    )


def test_a_folder_of_a_bucket_and_one_object_by_its_key(server, bucket, tmp_path):
    filesystem, at = bucket
    filesystem.pipe_file(f"{at}/a.bin", BYTES)
    filesystem.pipe_file(f"{at}/sub/b.bin", b"b")
    filesystem.pipe_file(f"{at}/sub/", b"")  # what consoles make for a folder
    filesystem.pipe_file(f"{at}2/other", b"of another folder")
    objects = open_objects(f"s3://{at}/", server.options)
    assert [(one.key, one.size) for one in objects.find()] == [
        ("a.bin", len(BYTES)),
        ("sub/b.bin", 1),
    ]
    one = open_objects(f"s3://{at}/a.bin", server.options)
    assert [(found.key, found.size) for found in one.find()] == [("", len(BYTES))]
    cache = BlobCache(tmp_path / "cache")
    blob = bring(one, cache)
    assert blob.path.read_bytes() == BYTES
    assert blob.verified in {"md5", "crc32", "crc64nvme", "crc32c"}
    assert bring(objects, cache).path == blob.path  # equal bytes of another key
    with pytest.raises(CheckpointNotFoundError):
        open_objects(f"s3://{at}/missing", server.options).find()


def test_the_checksum_that_the_store_keeps_is_what_the_bytes_have(s3, tmp_path):
    filesystem = s3fs.S3FileSystem(skip_instance_cache=True, **s3.options)
    key = uuid.uuid4().hex
    filesystem.call_s3(
        "put_object", Bucket="bucket", Key=key, Body=BYTES, ChecksumAlgorithm="SHA256"
    )
    objects = open_objects(f"s3://bucket/{key}", s3.options)
    told = objects.checksums(objects.find()[0])
    assert told["sha256"] == hashlib.sha256(BYTES).hexdigest()
    assert bring(objects, BlobCache(tmp_path)).verified == "sha256"
    filesystem.call_s3(
        "put_object", Bucket="bucket", Key=key, Body=b"kept", ServerSideEncryption="aws:kms"
    )
    objects = open_objects(f"s3://bucket/{key}", s3.options)
    assert "md5" not in objects.checksums(objects.find()[0])  # its ETag is no digest on S3


def test_an_object_of_several_parts_is_compared_with_what_is_known_of_the_whole(
    server, bucket, tmp_path
):
    filesystem, at = bucket
    with filesystem.open(f"{at}/parts", "wb", block_size=6_000_000) as stream:
        stream.write(BYTES)
    blob = bring(open_objects(f"s3://{at}/parts", server.options), BlobCache(tmp_path / "c"))
    assert blob.path.read_bytes() == BYTES


def test_an_object_that_is_replaced_is_not_read_at_its_old_version(server, bucket):
    filesystem, at = bucket
    filesystem.pipe_file(f"{at}/x", b"old bytes")
    objects = open_objects(f"s3://{at}/x", server.options)
    (found,) = objects.find()
    filesystem.pipe_file(f"{at}/x", b"new bytes")
    target = memoryview(bytearray(9))
    with pytest.raises(StorePermanentError, match="replaced"):
        objects.read_into(found, 0, target)
    with pytest.raises(StorePermanentError, match="replaced"):
        objects.checksums(found)
    objects.read_into(objects.find()[0], 0, target)
    assert bytes(target) == b"new bytes"


def test_secrets_are_in_no_error(weed, bucket):
    options = {**weed.options, "secret": "wrong/s3cret/of/the/tests"}
    with pytest.raises(StorePermanentError) as error:
        open_objects("s3://bucket/x", options).find()
    assert "wrong/s3cret" not in str(error.value)


def test_google_tells_checksums_and_generations(gcs, tmp_path):
    bucket = gcs.bucket()
    filesystem = fsspec.filesystem("gs", skip_instance_cache=True, **gcs.options)
    filesystem.pipe_file(f"{bucket}/w/a.bin", SMALL)
    filesystem.pipe_file(f"{bucket}/w/sub/b.bin", b"b")
    objects = open_objects(f"gs://{bucket}/w", gcs.options)
    found = {one.key: one for one in objects.find()}
    assert set(found) == {"a.bin", "sub/b.bin"}
    told = found["a.bin"].checksums
    assert told
    if "md5" in told:
        assert told["md5"] == hashlib.md5(SMALL).hexdigest()
    assert bring(objects, BlobCache(tmp_path)).path.read_bytes() == SMALL
    target = memoryview(bytearray(1))
    filesystem.pipe_file(f"{bucket}/w/sub/b.bin", b"c")
    with pytest.raises(StorePermanentError, match="replaced"):
        objects.read_into(found["sub/b.bin"], 0, target)
    (one,) = open_objects(f"gs://{bucket}/w/a.bin", gcs.options).find()
    assert (one.key, one.size) == ("", len(SMALL))


def test_azure_tells_checksums_and_versions(azurite, tmp_path):
    container = uuid.uuid4().hex
    filesystem = fsspec.filesystem("az", skip_instance_cache=True, **azurite)
    filesystem.mkdir(container)
    filesystem.pipe_file(f"{container}/w/a.bin", SMALL)
    filesystem.pipe_file(f"{container}/w/sub/b.bin", b"b")
    objects = open_objects(f"abfs://{container}/w", azurite)
    found = {one.key: one for one in objects.find()}
    assert set(found) == {"a.bin", "sub/b.bin"}
    assert all(one.version for one in found.values())
    assert found["a.bin"].checksums == {"md5": hashlib.md5(SMALL).hexdigest()}
    number = list(found).index("a.bin")
    blob = bring(objects, BlobCache(tmp_path), number)
    assert (blob.path.read_bytes(), blob.verified) == (SMALL, "md5")
    filesystem.pipe_file(f"{container}/w/sub/b.bin", b"c", overwrite=True)
    with pytest.raises(StorePermanentError, match="replaced"):
        objects.read_into(found["sub/b.bin"], 0, memoryview(bytearray(1)))
    (one,) = open_objects(f"abfs://{container}/w/a.bin", azurite).find()
    assert (one.key, one.size) == ("", len(SMALL))


def test_other_filesystems_work_and_unknown_schemes_are_refused(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/weights-of-a-test/a", b"abc")
    try:
        objects = open_objects("memory://weights-of-a-test")
        assert bring(objects, BlobCache(tmp_path)).path.read_bytes() == b"abc"
    finally:
        memory.rm("/weights-of-a-test", recursive=True)
    with pytest.raises(InvalidSettingError, match="scheme"):
        open_objects("nowhere://x")


def test_crc32_is_computed_as_s3_writes_it(tmp_path):
    from bt_lightning.weights.file_digests import digests_of

    file = tmp_path / "x"
    file.write_bytes(BYTES)
    _, digests = digests_of(file, {"crc32"})
    raw = bytes.fromhex(digests["crc32"])
    assert base64.b64encode(raw) == base64.b64encode(zlib.crc32(BYTES).to_bytes(4, "big"))
