"""TLS, proxies, kept connections and options of the user mean what they mean to s3fs."""

from __future__ import annotations

import base64
import hashlib
import random
import urllib.request
from types import SimpleNamespace

import pytest

from bt_lightning.errors import CheckpointNotFoundError, StoreError, StorePermanentError
from bt_lightning.store.interface import Reuse, Sending
from bt_lightning.store.open_store import download_url, open_store
from bt_lightning.store.s3 import checksums, part_senders
from bt_lightning.store.s3.checksums import ChecksumChoice

MIB = 1024 * 1024
DATA = b"bytes" * 100_000


def there_and_back(store, memory):
    store.send(memory(DATA), "key")
    target = memoryview(bytearray(len(DATA)))
    store.read_into("key", 0, target)
    return target == DATA


def test_tls_with_the_users_authority(connect, tls_proxy, certificate, memory):
    where = {"endpoint_url": tls_proxy.endpoint, "region_name": "us-east-1"}
    given = {**where, "verify": str(certificate[0])}
    assert there_and_back(connect(client_kwargs=given), memory)


def test_tls_with_the_authority_of_the_environment(
    connect, tls_proxy, certificate, memory, monkeypatch
):
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate[0]))
    assert there_and_back(connect(tls_proxy.endpoint), memory)


def test_tls_without_any_check_if_the_user_says_so(connect, tls_proxy, memory):
    where = {"endpoint_url": tls_proxy.endpoint, "region_name": "us-east-1", "verify": False}
    assert there_and_back(connect(client_kwargs=where), memory)


def test_a_certificate_of_nobody_known_is_a_permanent_error(connect, tls_proxy, memory):
    """As a transient one it would be tried again for ever, and never be reported."""
    with pytest.raises(StorePermanentError, match="CERTIFICATE_VERIFY_FAILED"):
        connect(tls_proxy.endpoint).send(memory(DATA), "key")


def test_quick_listings_trust_the_same_authority_and_no_other(
    tls_proxy, certificate, weed, monkeypatch
):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    where = {"endpoint_url": tls_proxy.endpoint, "region_name": "us-east-1"}
    options = {**weed.options, "client_kwargs": where}
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate[0]))
    with monkeypatch.context() as patch:
        patch.setattr("bt_lightning.store.s3.s3_store.S3Store.__init__", None)
        assert list(open_store("s3://bucket/tls", options).list("none")) == []
    assert tls_proxy.seen == ["GET"]
    for bundle in ("", str(certificate[1])):
        monkeypatch.setenv("AWS_CA_BUNDLE", bundle)
        with pytest.raises(StoreError):
            list(open_store("s3://bucket/tls", options).list("none"))
    assert tls_proxy.seen == ["GET"]


def test_a_proxy_of_the_environment_is_used(connect, proxied, weed, memory, monkeypatch):
    proxy = proxied(weed)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, proxy.endpoint)
    assert there_and_back(connect("http://s3.nowhere.invalid"), memory)
    assert proxy.seen == ["PUT", "GET"]


def test_connections_are_kept(connect, proxied, weed, memory):
    proxy = proxied(weed)
    store = connect(proxy.endpoint)
    for _ in range(5):
        assert there_and_back(store, memory)
    assert len(proxy.clients) == 1
    assert len(proxy.seen) == 10


def test_a_connection_that_the_server_closed_is_replaced(connect, proxied, weed, memory):
    proxy = proxied(weed)
    store = connect(proxy.endpoint)
    assert there_and_back(store, memory)
    for client in list(proxy.clients):
        client.shutdown(2)
    proxy.reset()
    assert there_and_back(store, memory)
    assert proxy.seen == ["PUT", "GET"]


def test_options_of_every_request_reach_ours(connect, weed, memory):
    store = connect(s3_additional_kwargs={"ContentType": "a/kind", "Metadata": {"made-by": "us"}})
    for size in (1000, 9 * 1024 * 1024):
        store.send(memory(b"x" * size), f"key-{size}")
        facts = store._api.call("head_object", Key=store._key(f"key-{size}"))
        assert facts["ContentType"] == "a/kind"
        assert facts["Metadata"] == {"made-by": "us"}


@pytest.mark.parametrize("kind", ["AES256", "customer"])
def test_encryption_that_is_set_for_s3fs_holds_for_files_too(connect, memory, kind):
    key = "0123456789abcdef" * 2
    words = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": key}
    words = {"ServerSideEncryption": "AES256"} if kind == "AES256" else words
    store, data = connect(s3_additional_kwargs=words), random.Random(1).randbytes(20 * MIB)
    for name, size in (("small", 1000), ("large", 20 * MIB)):
        store.send(memory(data[:size]), name)
        facts = store._api.call("head_object", Key=store._key(name))
        if kind == "AES256":
            assert facts["ServerSideEncryption"] == "AES256"
        else:
            assert facts["SSECustomerAlgorithm"] == "AES256"
        target = memoryview(bytearray(size))
        store.read_into(name, 0, target)
        assert target == data[:size]
    store.put("note", b"by s3fs")
    assert store.read("note") == b"by s3fs"
    changed = memory(data[: 16 * MIB] + bytes(4 * MIB))
    store.send(changed, "next", Reuse("large", ((0, 16 * MIB),)))
    target = memoryview(bytearray(20 * MIB))
    store.read_into("next", 0, target)
    assert target == changed._data
    if kind == "customer":
        with pytest.raises(StoreError):
            connect().read_into("large", 0, target)


def test_a_bucket_that_insists_on_md5_gets_it(connect, proxied, weed, memory):
    proxy = proxied(weed)
    store = connect(proxy.endpoint, sending=Sending(content_md5=True))
    for size in (1000, 9 * MIB):
        data = b"y" * size
        store.send(memory(data), f"key-{size}")
        wanted = base64.b64encode(hashlib.md5(data[: 8 * MIB]).digest()).decode()
        assert wanted in {headers.get("content-md5") for headers in proxy.headers}


def test_no_more_is_sent_than_the_user_allows(connect, proxied, weed, memory, monkeypatch):
    """By a clock that stands still: each waits until those before it had their time."""
    waited = []
    proxy = proxied(weed)
    store = connect(proxy.endpoint, sending=Sending(bytes_s=1e6))
    monkeypatch.setattr(part_senders, "time", SimpleNamespace(monotonic=lambda: 5.0))
    monkeypatch.setattr(part_senders.PartSenders, "rest", lambda _, seconds: waited.append(seconds))
    store.send(memory(b"z" * 20 * MIB), "key")
    assert len(waited) >= 20 * MIB / 250_000, "no connection falls silent for long"
    assert len(set(waited)) == len(waited), "they share one cap"
    assert 20.9 - 0.25 <= max(waited) <= 20.98, "21 MB at 1 MB a second"


@pytest.mark.parametrize("name", [each.name for each in checksums.installed_checksums()])
@pytest.mark.parametrize("size", [1000, 9 * 1024 * 1024])
def test_every_checksum_is_one_that_the_server_compares(
    connect, proxied, weed, memory, name, size, monkeypatch
):
    (checksum,) = [each for each in checksums.installed_checksums() if each.name == name]
    monkeypatch.setattr(checksums, "installed_checksums", lambda: (checksum,))
    proxy = proxied(weed)
    store = connect(proxy.endpoint)
    number = 1 if size == 1000 else 2
    proxy.reset(**{f"n{number}": "flip"})
    data = b"x" * size
    store.send(memory(data), "key")
    assert proxy.count("PUT") + proxy.count("UploadPart") == (2 if size == 1000 else 3)
    target = memoryview(bytearray(size))
    store.read_into("key", 0, target)
    assert target == data


def test_a_server_that_knows_no_checksum_is_asked_once(s3, s3_url, memory):
    from bt_lightning.store.s3.s3_store import S3Store

    store = S3Store(s3_url, s3.options)
    assert isinstance(store._uploader._choice, ChecksumChoice)
    for _ in checksums.installed_checksums():
        store.send(memory(DATA), "key")
    assert store._uploader._choice.candidates() == (None,)
    assert store.read("key") == DATA


def test_urls_are_signed_by_version_4(s3, s3_url, connect):
    """Version 2 reads no object under a key of KMS, and no region takes it that is younger."""
    for store in (open_store(s3_url, s3.options), connect()):
        store.put("a/b c", DATA)
        url = store.sign("a/b c", 60)
        assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in url
        assert "X-Amz-Expires=60" in url
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert answer.read() == DATA


@pytest.mark.parametrize("size", [0, 5, 9 * MIB])
def test_an_object_of_anybody_s_is_downloaded(weed, connect, memory, tmp_path, monkeypatch, size):
    store, data = connect(), random.Random(size).randbytes(size)
    store.send(memory(data), "a/b c?d.ckpt") if size else store.put("a/b c?d.ckpt", b"")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", weed.options["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", weed.options["secret"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", weed.endpoint)
    download_url(f"{store.name}/a/b c?d.ckpt", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == data
    with pytest.raises(CheckpointNotFoundError, match=r"there is no s3://.*/none"):
        download_url(f"{store.name}/none", tmp_path / "none")
