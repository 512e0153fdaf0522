"""Requests without botocore are those that botocore would make, or are not made at all."""

from __future__ import annotations

import http.server
import threading
from contextlib import contextmanager
from datetime import datetime, timezone
from urllib.parse import urlsplit

import botocore.session
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from bt_lightning.errors import CheckpointNotFoundError, StoreError, StoreTransientError
from bt_lightning.store.interface import ObjectInfo
from bt_lightning.store.open_store import open_store
from bt_lightning.store.s3.s3_store import S3Store
from bt_lightning.store.s3.signed_reads import SignedReadStore, sign
from bt_lightning.store.s3.signed_reads_credentials import BucketAccess, find_access

KEYS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "s3kr3t+/of=tests"}
MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
PLACES = [
    ("eu-west-1", None),
    ("us-east-1", None),
    ("ap-southeast-2", "http://127.0.0.1:9000"),
    (None, "http://minio.example:9000/"),
    (None, "https://storage.example"),
    ("auto", "https://abc.r2.cloudflarestorage.com"),
]


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """No settings of the machine that the tests run on."""
    import os

    for name in os.environ:
        if name.startswith(("AWS_", "FSSPEC_", "BOTO_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def of_botocore(monkeypatch, region, endpoint, token, call, **parameters):
    """The URL and the headers of the request that botocore's own client sends."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    if token:
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    if region:
        monkeypatch.setenv("AWS_DEFAULT_REGION", region)
    session = botocore.session.Session()
    client = session.create_client("s3", endpoint_url=endpoint)
    seen = []

    def stop(request, **_):
        seen.append(request)
        raise KeyboardInterrupt

    client.meta.events.register("before-send.s3", stop)
    with pytest.raises(KeyboardInterrupt):
        getattr(client, call)(Bucket="bucket", **parameters)
    return seen[0].url, {name.lower(): value for name, value in seen[0].headers.items()}


@pytest.mark.parametrize(("region", "endpoint"), PLACES)
@pytest.mark.parametrize("token", [None, "session+token/="])
def test_the_url_region_and_user_are_those_of_botocore(monkeypatch, region, endpoint, token):
    url, headers = of_botocore(
        monkeypatch, region, endpoint, token, "get_object", Key="a b/c+d@2/é~.json"
    )
    said = {**KEYS, "AWS_SESSION_TOKEN": token or "", "AWS_DEFAULT_REGION": region or ""}
    asked = find_access("bucket", {}, {**said, "AWS_ENDPOINT_URL": endpoint or ""}, {})
    signed = sign(asked, "a b/c+d@2/é~.json", {}, MOMENT)
    assert signed.url == url
    scope = headers["authorization"].decode().split("Credential=")[1].split(",")[0].split("/")
    assert (
        signed.headers["authorization"].split("Credential=")[1].split(",")[0].split("/")[2:]
        == (scope[2:])
    )
    assert scope[0] == KEYS["AWS_ACCESS_KEY_ID"]
    own = headers.get("x-amz-security-token")
    assert signed.headers.get("x-amz-security-token") == (own.decode() if own else None)


words = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=20)


@given(words, st.dictionaries(words.filter(bool), words, max_size=3), st.none() | st.just("t/+="))
def test_the_signature_is_that_of_botocore(path, query, token):
    asked = BucketAccess(
        "https://bucket.s3.eu-west-1.amazonaws.com", "eu-west-1", "AKID", "s/+=", token
    )
    signed = sign(asked, path, query, MOMENT)
    request = AWSRequest("GET", signed.url)
    request.context = {"timestamp": MOMENT.strftime("%Y%m%dT%H%M%SZ"), "payload_signing_enabled": 1}
    signer = S3SigV4Auth(Credentials("AKID", "s/+=", token), "s3", "eu-west-1")
    request.headers["x-amz-content-sha256"] = signed.headers["x-amz-content-sha256"]
    if token:
        request.headers["x-amz-security-token"] = token
    request.headers["x-amz-date"] = signed.headers["x-amz-date"]
    text = signer.string_to_sign(request, signer.canonical_request(request))
    expected = signer.signature(text, request)
    assert signed.headers["authorization"].rpartition("=")[2] == expected


@pytest.mark.parametrize(
    ("options", "environment", "profile"),
    [
        ({}, {}, {}),
        ({}, {"AWS_ACCESS_KEY_ID": "a"}, {}),
        ({}, {**KEYS, "AWS_PROFILE": "other"}, {}),
        ({}, {**KEYS, "AWS_USE_FIPS_ENDPOINT": "true"}, {}),
        ({}, {**KEYS, "https_proxy": "http://proxy"}, {}),
        ({}, {**KEYS, "FSSPEC_S3_KEY": "x"}, {}),
        ({}, KEYS, {"s3": "\naddressing_style = virtual"}),
        ({}, KEYS, {"role_arn": "x"}),
        ({"anon": True}, KEYS, {}),
        ({"key": "a"}, KEYS, {}),
        ({"client_kwargs": {"verify": False}}, KEYS, {}),
        ({"endpoint_url": "http://a", "client_kwargs": {"endpoint_url": "http://b"}}, KEYS, {}),
        ({}, {**KEYS, "FSSPEC_S3_ANON": "true"}, {}),
        ({}, {**KEYS, "FSSPEC_S3": "{}"}, {}),
        ({}, {**KEYS, "FSSPEC_S3_TOKEN": ""}, {}),
        ({}, {"FSSPEC_S3_KEY": "a", "FSSPEC_S3_SECRET": "12"}, {}),
    ],
)
def test_where_botocore_may_know_more_it_is_asked(options, environment, profile):
    environment = {"AWS_DEFAULT_REGION": "eu-west-1", **environment}
    assert find_access("bucket", options, environment, profile) is None


def test_what_fsspec_makes_options_of_counts_like_options():
    there = {"FSSPEC_S3_KEY": "k", "FSSPEC_S3_SECRET": "s", "FSSPEC_S3_ENDPOINT_URL": "http://a:90"}
    found = find_access("bucket", {}, {**KEYS, **there}, {})
    assert (found.key, found.secret, found.url) == ("k", "s", "http://a:90/bucket")
    given = {"key": "own", "secret": "own", "endpoint_url": "http://b:90"}
    found = find_access("bucket", given, {**there, "FSSPEC_S3_TOKEN": "of-both"}, {})
    assert (found.key, found.url, found.token) == ("own", "http://b:90/bucket", "of-both")


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://Storage.example", "https://storage.example:443", "http://user:pw@host", "ftp://x",
        "https://s3.eu-west-1.amazonaws.com", "http://host/path", "http://[::1]:9000", "host:80",
        "http://host:99999", "http://host?x", "//host",
    ],
)  # fmt: skip
def test_endpoints_that_need_thought_are_left_to_botocore(endpoint):
    assert find_access("bucket", {}, {**KEYS, "AWS_ENDPOINT_URL_S3": endpoint}, {}) is None


@pytest.mark.parametrize("bucket", ["with.dot", "UPPER", "a", "arn:aws:s3", "x" * 64, "a--x_"])
@pytest.mark.parametrize("region", ["cn-north-1", "us-gov-west-1", "aws-global", ""])
def test_other_buckets_and_partitions_are_left_to_botocore(bucket, region):
    environment = {**KEYS, "AWS_DEFAULT_REGION": "eu-west-1"}
    assert find_access("bucket", {}, environment, {}) is not None
    assert find_access(bucket, {}, environment, {}) is None
    assert find_access("bucket", {}, {**environment, "AWS_DEFAULT_REGION": region}, {}) is None


def test_the_files_of_the_user_count_as_for_botocore(monkeypatch, tmp_path):
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text("[default]\nregion = eu-west-1\noutput = json\n")
    keys = "[default]\naws_access_key_id = AKIDFILE\naws_secret_access_key = s3kr3t-of-file\n"
    (tmp_path / ".aws" / "credentials").write_text(keys + "[other]\nrole_arn = x\n")
    assert isinstance(open_store("s3://bucket/x"), SignedReadStore)
    (tmp_path / ".aws" / "config").write_text("[default]\nregion=eu-west-1\nsso_session=x\n")
    assert isinstance(open_store("s3://bucket/x"), S3Store)
    (tmp_path / ".aws" / "config").write_bytes(b"\xff\xfe rubbish")
    with pytest.raises(StoreError):
        open_store("s3://bucket/x").read("key")


@pytest.fixture(params=["s3", "weed"])
def server(request):
    return request.getfixturevalue(request.param)


def test_it_lists_and_reads_as_s3fs_does_and_opens_nothing(server, monkeypatch):
    url = "s3://bucket/quick"
    slow = S3Store(url, server.options)
    keys = [f"jobs/a b/c+{n}%/é@{n}" for n in range(5)]
    for number, key in enumerate(keys):
        slow.put(key, b"x" * number)
    monkeypatch.setattr(S3Store, "__init__", None)
    quick = open_store(url, server.options)
    assert isinstance(quick, SignedReadStore)
    assert quick.name == url
    assert quick.distant
    found = sorted(quick.list("jobs"), key=lambda info: info.key)
    assert found == [ObjectInfo(key, number) for number, key in enumerate(keys)]
    expected = {info.key: info.version for info in slow.list("jobs")}
    assert {info.key: info.version for info in found} == expected
    assert [quick.read(key) for key in keys] == [b"x" * n for n in range(5)]
    assert quick.read("jobs/none") is None
    assert list(quick.list("nothing")) == []


def test_it_reads_ranges_into_memory_and_opens_nothing(server, monkeypatch):
    S3Store("s3://bucket/quick", server.options).put("k/é +", bytes(range(250)))
    monkeypatch.setattr(S3Store, "__init__", None)
    store = open_store("s3://bucket/quick", server.options)
    front, back = bytearray(10), bytearray(40)
    store.read_into("k/é +", 200, memoryview(front), memoryview(back))
    assert (front, back) == (bytes(range(200, 210)), bytes(range(210, 250)))
    store.read_into("k/é +", 3)


def test_a_range_that_is_not_there_is_asked_of_s3fs_and_its_error_counts(server):
    store = open_store("s3://bucket/quick", server.options)
    assert isinstance(store, SignedReadStore)
    with pytest.raises(CheckpointNotFoundError, match="there is no"):
        store.read_into("none", 0, memoryview(bytearray(1)))
    S3Store("s3://bucket/quick", server.options).put("short", b"abc")
    store = open_store("s3://bucket/quick", server.options)
    with pytest.raises(StoreTransientError):
        store.read_into("short", 1, memoryview(bytearray(3)))


@pytest.mark.parametrize(
    ("status", "span", "body"),
    [
        (206, "bytes 5-9/20", b"12345"),
        (206, "bytes 4-8/20", b"1234"),
        (206, "", b"12345"),
        (200, "bytes 4-8/20", b"12345"),
        (200, "", b"everything"),
        (416, "", b""),
        (503, "", b""),
    ],
)
def test_other_bytes_than_asked_for_are_not_taken(status, span, body):
    class Instead:
        def read_into(self, key, offset, target, on_progress):
            target[:] = b"right"

    with answering(status, body, [("Content-Range", span)] if span else ()) as endpoint:
        options = {"key": "a", "secret": "b", "endpoint_url": endpoint}
        store = SignedReadStore(
            "s3://bucket/x", options, find_access("bucket", options, {}, {}), Instead
        )
        found = bytearray(5)
        store.read_into("k", 4, memoryview(found))
    assert found == b"right"


def test_more_than_a_page_is_listed_whole(s3):
    store = open_store("s3://bucket/pages", s3.options)
    assert isinstance(store, SignedReadStore)
    for number in range(1001):
        s3.request(f"/bucket/pages/k/{number:04}", "PUT", b"x")
    assert [info.key for info in store.list("k")] == [f"k/{n:04}" for n in range(1001)]


def test_what_is_refused_is_asked_of_s3fs_and_its_error_counts(s3):
    store = open_store("s3://no-such-bucket/x", s3.options)
    assert isinstance(store, SignedReadStore)
    assert store.read("key") is None
    with pytest.raises(StoreError, match="no bucket"):
        list(store.list("key"))
    with s3.refusing_everybody(), pytest.raises(StoreError) as caught:
        open_store("s3://bucket/x", s3.options).read("key")
    assert s3.options["secret"] not in str(caught.value)


@contextmanager
def answering(status, body, headers=()):
    """A server that says the same to everybody."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = False  # each is waited for at the end

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


PAGE = b"<ListBucketResult><IsTruncated>%s</IsTruncated>%s</ListBucketResult>"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>please log in"),
        (200, b"<html/>"),
        (200, b""),
        (200, PAGE % (b"true", b"")),
        (200, PAGE % (b"false", b"<Contents><Key>../x</Key><Size>1</Size></Contents>")),
        (200, PAGE % (b"false", b"<Contents><Key>x/k/a</Key><Size>-1</Size></Contents>")),
        (200, b'<?xml version="1.0" encoding="nope"?><ListBucketResult/>'),
        (206, PAGE % (b"false", b"")),
        (301, b"<Error><Code>PermanentRedirect</Code></Error>"),
        (403, b"<Error><Code>AccessDenied</Code></Error>"),
        (404, b"<Error><Code>NoSuchBucket</Code></Error>"),
        (500, b""),
    ],
)
def test_another_answer_than_asked_for_is_no_answer(status, body):
    asked = []

    class Instead:
        name = "s3://bucket/x"

        def list(self, prefix):
            asked.append(prefix)
            return iter([ObjectInfo("k/of-s3fs", 1)])

    with answering(status, body) as endpoint:
        options = {"key": "a", "secret": "b", "client_kwargs": {"endpoint_url": endpoint}}
        asks = find_access("bucket", options, {}, {})
        store = SignedReadStore("s3://bucket/x", options, asks, Instead)
        for _ in range(2):
            assert [info.key for info in store.list("k")] == ["k/of-s3fs"]
    assert asked == ["k", "k"]
    assert urlsplit(endpoint).port
