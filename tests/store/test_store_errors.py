"""What clients raise becomes two classes, once, and says nothing secret. Invariants 5 and 10."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import traceback
import uuid
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from botocore.exceptions import ClientError
from fsspec.registry import known_implementations
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bt_lightning.errors import (
    CheckpointExistsError,
    InvalidSettingError,
    StoreError,
    StorePermanentError,
    StoreTransientError,
)
from bt_lightning.store.backends.fsspec_store import FsspecStore
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.interface import class_of, redact, translated
from bt_lightning.store.open_store import open_store
from bt_lightning.store.s3.s3_store import S3Store
from bt_lightning.store.secrets import known_secrets, secrets_of

relaxed = settings(deadline=None, database=None)


@pytest.fixture
def closed_port():
    """A port that refuses connections and that nobody else can take meanwhile."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.fixture
def answering():
    """An S3 endpoint that answers every request with one status and error code."""
    with contextlib.ExitStack() as stack:

        def start(status: int, code: str) -> dict[str, object]:
            body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()

            class Handler(BaseHTTPRequestHandler):
                protocol_version = "HTTP/1.1"  # clients wait for `100 Continue`

                def answer(self):
                    self.rfile.read(int(self.headers.get("Content-Length") or 0))
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.send_header("Connection", "close")
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(body)

                do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer  # noqa: N815

                def log_message(self, *_):
                    pass

            server = stack.enter_context(HTTPServer(("127.0.0.1", 0), Handler))
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            endpoint = f"http://127.0.0.1:{server.server_port}"
            return {"key": "k", "secret": "s", "client_kwargs": {"endpoint_url": endpoint}}

        yield start


def every_call(store, tmp_path, send):
    """Each method of a store, as (name, function without arguments)."""
    (tmp_path / "source").write_bytes(b"x")
    return {
        "read": lambda: store.read("a/object"),
        "put": lambda: store.put("a/object", b"x"),
        "put_new": lambda: store.put_new("a/object", b"x"),
        "send": lambda: send(store, tmp_path / "source", "a/object"),
        "size": lambda: store.size("a/object"),
        "read_into": lambda: store.read_into("a/object", 0, memoryview(bytearray(1))),
        "list": lambda: list(store.list("a")),
        "delete": lambda: store.delete(["a/object"]),
    }


CALLS = ["read", "put", "put_new", "send", "size", "read_into", "list", "delete"]


# real refusals of a real server


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_secret_is_a_permanent_error(weed, tmp_path, call, send):
    """As a transient one it would be tried again for hours and never be reported."""
    options = {**weed.options, "secret": "an0ther/secret"}
    store = open_store("s3://bucket/x", options)
    with pytest.raises(StorePermanentError, match="s3://bucket/x") as caught:
        every_call(store, tmp_path, send)[call]()
    assert options["secret"] not in str(caught.value)


@pytest.mark.parametrize("call", ["size", "delete"])
def test_an_unknown_user_is_a_permanent_error(s3, s3_url, tmp_path, call, send):
    """moto checks users, but not in signed URLs, by which bytes come and go."""
    act = every_call(open_store(s3_url, s3.options), tmp_path, send)[call]
    with s3.refusing_everybody(), pytest.raises(StorePermanentError) as caught:
        act()
    assert s3.options["secret"] not in str(caught.value)
    assert s3_url in str(caught.value)


@pytest.mark.parametrize("call", CALLS)
def test_a_refused_connection_is_a_transient_error(closed_port, tmp_path, call, send):
    """A network that is away for a minute must not end a run's uploads, nor be reported."""
    endpoint = f"http://127.0.0.1:{closed_port}"
    options = {"key": "k", "secret": "s", "client_kwargs": {"endpoint_url": endpoint}}
    act = every_call(open_store("s3://bucket/x", options), tmp_path, send)[call]
    with pytest.raises(StoreTransientError, match="s3://bucket/x"):
        act()


def test_a_bucket_that_does_not_exist_is_a_permanent_error(s3):
    store = open_store("s3://no-such-bucket/x", s3.options)
    with pytest.raises(StorePermanentError):
        store.put("key", b"x")
    with pytest.raises(StorePermanentError, match="no bucket no-such-bucket"):
        list(store.list("folder"))


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (403, "AccessDenied", StorePermanentError),
        (400, "ExpiredToken", StoreTransientError),
        (500, "InternalError", StoreTransientError),
        (503, "ServiceUnavailable", StoreTransientError),
    ],
)
def test_the_codes_of_s3_are_sorted_into_those_that_pass_and_those_that_stay(
    answering, status, code, kind
):
    store = open_store("s3://bucket/x", answering(status, code))
    with pytest.raises(StoreError) as caught:
        store.put("key", b"x")
    assert type(caught.value) is kind, caught.value


# errors of the operating system and of clients


def a_client_error(*names):
    """An error as a package raises it that may not be installed here; the last name is its own."""
    kind = Exception
    for name in names:
        kind = type(name, (kind,), {})
    return kind("x")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.EIO, "x"), StoreTransientError),
        (OSError(errno.EBUSY, "x"), StoreTransientError),
        (OSError(errno.ESTALE, "x"), StoreTransientError),
        (OSError(errno.ENETUNREACH, "x"), StoreTransientError),
        (TimeoutError("x"), StoreTransientError),
        (ConnectionResetError("x"), StoreTransientError),
        (BrokenPipeError("x"), StoreTransientError),
        (OSError(errno.ENOSPC, "x"), StorePermanentError),
        (OSError(errno.EROFS, "x"), StorePermanentError),
        (OSError(errno.EINVAL, "x"), StorePermanentError),
        (PermissionError(errno.EACCES, "x"), StorePermanentError),
        (FileNotFoundError(errno.ENOENT, "x"), StorePermanentError),
        (OSError("no number"), StorePermanentError),
        (ValueError("x"), StorePermanentError),
        (KeyError("x"), StorePermanentError),
        (a_client_error("HttpError"), StoreTransientError),
        (a_client_error("HTTPClientError", "ReadTimeoutError"), StoreTransientError),
        (a_client_error("BotoCoreError", "ParamValidationError"), StorePermanentError),
    ],
    ids=repr,
)
def test_an_error_of_a_client_is_sorted_by_its_type_and_number(error, kind):
    with pytest.raises(StoreError) as caught, translated("doing it"):
        raise error
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"doing it: {type(error).__name__}: ")


def test_our_own_errors_and_interrupts_pass_unchanged():
    own = CheckpointExistsError("mine")
    with pytest.raises(CheckpointExistsError) as caught, translated("x"):
        raise own
    assert caught.value is own
    with pytest.raises(KeyboardInterrupt), translated("x"):
        raise KeyboardInterrupt


def test_a_full_or_broken_folder_is_named_and_sorted(tmp_path, monkeypatch):
    store = LocalStore(tmp_path)
    for code, kind in ((errno.ENOSPC, StorePermanentError), (errno.EIO, StoreTransientError)):
        with monkeypatch.context() as patch:
            patch.setattr(
                os, "fsync", lambda _, code=code: (_ for _ in ()).throw(OSError(code, "x"))
            )
            with pytest.raises(kind, match="a/object"):
                store.put("a/object", b"x")


# how a URL becomes a store


@pytest.mark.parametrize("url", ["s4://bucket/x", "nonsense://x", "htp://x", "s3_://bucket"])
def test_an_unknown_scheme_is_a_wrong_setting_and_named(url):
    """Taken for a local folder, it would store everything on the disk that may be lost."""
    with pytest.raises(InvalidSettingError) as caught:
        open_store(url)
    assert url in str(caught.value)
    assert "s3://" in str(caught.value), "it must say what would work"


def test_a_scheme_whose_package_is_not_installed_says_what_to_install(monkeypatch):
    entry = {"class": "no_such_package_anywhere.FS", "err": "Install `moonfs` to access the moon"}
    monkeypatch.setitem(known_implementations, "moon", entry)
    with pytest.raises(InvalidSettingError, match="moonfs"):
        open_store("moon://crater/x")


def test_options_that_a_client_does_not_take_are_a_permanent_error(s3_url):
    with pytest.raises(StorePermanentError):
        open_store(s3_url, {"no_such_option_at_all": 1}).read("x")


@pytest.mark.parametrize("url", ["{}", "file://{}", "local://{}"])
def test_a_path_and_a_file_url_are_the_same_folder(tmp_path, url):
    open_store(url.format(tmp_path)).put("a/object", b"x")
    assert (tmp_path / "a" / "object").read_bytes() == b"x"


def test_a_relative_path_is_taken_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = open_store("./some/folder")
    store.put("key", b"x")
    assert (tmp_path / "some/folder/key").exists()
    assert store.name == (tmp_path / "some/folder").as_uri()


@pytest.mark.parametrize(
    "url", ["some/folder", "folder", "~/folder", "s3:/bucket/x", "", "file://"]
)
def test_a_url_whose_scheme_was_forgotten_makes_no_folder(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidSettingError, match=r"s3://bucket/folder.*\./"):
        open_store(url)
    assert list(tmp_path.iterdir()) == []


# secrets

secrets = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="*"), min_size=6
)


@relaxed
@given(st.lists(secrets, min_size=1, max_size=4, unique=True), st.data())
@example(["abcdef", "abcdef-and-more"], None)
@example(["s3kr3t/with=odd+signs&x", "123456"], None)
def test_no_secret_that_is_known_stays_in_a_text(known, data):
    """Also where one secret begins or contains another: nothing of the longer may stay."""
    draw = data.draw if data else lambda _: " and "
    fill = st.sampled_from(["", " ", " and ", "https://host/?a=", '"', "secret=", ": "])
    text = "".join(draw(fill) + secret for secret in known)
    redacted = redact(text, frozenset(known))
    for secret in known:
        assert secret not in redacted
    longest = max(known, key=len)
    assert longest[-6:] not in redact(f"<{longest}>", frozenset(known))


@relaxed
@given(
    st.sampled_from(
        ["X-Amz-Signature", "sig", "X-Amz-Credential", "X-Amz-Security-Token", "X-Goog-Signature",
         "Signature", "AWSAccessKeyId", "token"]
    ),
    st.sampled_from("?&"),
    st.text("abcdefXYZ0123456789/+%-_.", min_size=1),
)  # fmt: skip
def test_what_signs_a_url_is_hidden(name, sign, value):
    """Presigned URLs reach error texts of clients that we do not control."""
    text = f"before https://host/path{sign}{name}=Q{value}Q&Expires=60 after"
    assert f"Q{value}Q" not in redact(text)
    assert redact(text) == f"before https://host/path{sign}{name}=***&Expires=60 after"


@relaxed
@given(st.text("abcXYZ019:%+-_.", min_size=1))
@example("user:pa@ss")
def test_user_info_of_a_url_is_hidden(info):
    text = f"cannot open ftp://{info}Q@host/path of it"
    assert redact(text) == "cannot open ftp://***@host/path of it"


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/training_projects/demo/jobs/a",
        "writing file:///mnt/x: OSError: [Errno 5] EIO",
        "NoCredentialsError: Unable to locate credentials",
        "the session token: expired; secret = none, password: none",
        "reading http://127.0.0.1:9000/bucket/model@2/x: no",
    ],
)
def test_a_text_without_secrets_is_left_as_it_is(text):
    assert redact(text) == text
    assert redact(redact(text)) == text


def test_every_text_of_nested_options_counts_as_a_secret():
    options = {
        "key": "AKIA-123",
        "client_kwargs": {"headers": ["Bearer-abc", ("deep-value",)], "verify": False, "n": 1},
        "short": "abc",
        "none": None,
    }
    assert secrets_of(options) == {"AKIA-123", "Bearer-abc", "deep-value"}


@pytest.mark.parametrize(
    ("url", "options", "environment", "known", "unknown"),
    [
        ("ftp://ada:hunter2@host/x", {}, {}, ["hunter2", "ada:hunter2"], ["host"]),
        ("s3://AKIA-123:hun/ter2@bucket/x", {}, {}, ["AKIA-123", "hun/ter2"], ["bucket"]),
        ("ftp://ada:hunter%2F2@host/x", {}, {}, ["hunter%2F2", "hunter/2"], []),
        ("abfs://container@account.dfs/x", {}, {}, [], ["container"]),
        ("https://host/x?sig=hunter2%3D", {}, {}, ["hunter2%3D", "hunter2="], ["host"]),
        ("az://c", {"connection_string": "AccountName=n;AccountKey=hunter2+/=;x=y"}, {},
         ["hunter2+/=", "hunter2%2B%2F%3D"], ["AccountName"]),
        ("s3://b", {"client_kwargs": {"endpoint_url": "http://u:hunter2@h"}}, {}, ["hunter2"], []),
        ("s3://b", {"profile": "training", "client_kwargs": {"region_name": "us-east-1"}}, {},
         [], ["training", "us-east-1"]),
        ("s3://b", {}, {"AWS_SECRET_ACCESS_KEY": "hun/ter2", "AWS_SESSION_TOKEN": "hunter3",
                        "AZURE_STORAGE_KEY": "hunter4", "AWS_REGION": "us-east-1",
                        "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/token", "MY_KEY": "keyboard"},
         ["hun/ter2", "hun%2Fter2", "hunter3", "hunter4"],
         ["us-east-1", "/var/run/token", "keyboard"]),
    ],
)  # fmt: skip
def test_what_a_store_was_opened_with_is_known(url, options, environment, known, unknown):
    secrets = known_secrets(url, options, environment)
    assert set(known) <= secrets
    assert not secrets.intersection(unknown)
    for one in known:
        assert one not in redact(f"Invalid name {one!r}: {one}", secrets)


@pytest.mark.parametrize("url", ["s3://AKIAHUNTER:{}@bucket/x", "s3a://AKIAHUNTER@bucket"])
def test_keys_in_a_url_of_s3_are_refused_and_not_shown(url):
    """Its clients take them for the name of a bucket, and print it."""
    url = url.format("/".join(["hun" + "ter2"] * 2))  # a traceback shows this line
    with pytest.raises(InvalidSettingError, match="AWS_ACCESS_KEY_ID") as caught:
        open_store(url)
    assert "hunter" not in shown(caught.value).lower().replace(__file__, "")
    assert "'bucket" in str(caught.value)


def test_the_error_of_missing_credentials_can_be_read(tmp_path, monkeypatch, closed_port):
    for name in os.environ:
        if name.startswith(("AWS_", "FSSPEC_", "BOTO_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port}")
    with pytest.raises(StorePermanentError, match="NoCredentialsError: Unable to locate cred"):
        open_store("s3://bucket/x").read("key")


def test_a_key_that_only_a_file_names_is_in_no_error(tmp_path, monkeypatch, s3):
    for name in os.environ:
        if name.startswith(("AWS_", "FSSPEC_", "BOTO_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(
        "[default]\naws_access_key_id = AKIAHUNTER\naws_secret_access_key = hunter2/hunter2\n"
    )
    name = "AKIA" + "HUNTER"  # a traceback shows this line
    with s3.refusing_everybody(), pytest.raises(StorePermanentError) as caught:
        S3Store("s3://bucket/x", {}).size(name)
    assert str(caught.value).startswith("reading s3://bucket/x/***:")
    assert "hunter" not in shown(caught.value).lower().replace(__file__, "")


def shown(error: BaseException) -> str:
    """All that a traceback in a log would show."""
    return "".join(traceback.format_exception(error)) + repr(error)


def test_a_real_error_of_a_client_that_names_its_endpoint_shows_no_secret(closed_port):
    """botocore prints the endpoint with its user info: the way by which secrets really get out."""
    secret = "hunter2/hunter2+hunter2"
    quoted = "hunter2%2Fhunter2"
    options = {
        "key": "AKIAHUNTERHUNTER",
        "secret": secret,
        "token": "session-hunter2-token",
        "client_kwargs": {"endpoint_url": f"http://user:{quoted}@127.0.0.1:{closed_port}"},
    }
    store = FsspecStore("s3://bucket/x", options)
    with pytest.raises(StoreError) as caught:
        store.put("a/object", b"x")
    assert "s3://bucket/x/a/object" in str(caught.value)
    assert "hunter2" not in shown(caught.value).lower().replace(__file__, "")
    assert "hunter2" not in store.name


def test_a_real_error_about_a_wrong_option_shows_no_secret(s3):
    options = {**s3.options, "client_kwargs": {s3.options["secret"]: 1}}
    options["config_kwargs"] = {"signature_version": s3.options["secret"]}
    with pytest.raises(StoreError) as caught:
        open_store("s3://bucket/x", options).put("a", b"x")
    assert s3.options["secret"] not in shown(caught.value)


def test_a_url_with_a_password_is_named_without_it():
    url = "nonsense://user:hunter2@host/x?token=hunter2"
    with pytest.raises(InvalidSettingError) as caught:
        open_store(url)
    assert "hunter2" not in shown(caught.value).replace(__file__, "")


def test_a_taken_key_is_known_by_its_code_where_the_server_gives_no_message(monkeypatch):
    """As Ceph's gateway answers (`nox -s radosgw`)."""
    store = FsspecStore(f"memory://{uuid.uuid4().hex}", {})
    store.put("key", b"ours")

    def pipe_file(*_, **__):
        answer = {"Error": {"Code": "PreconditionFailed"}}
        raise OSError(errno.EINVAL, None) from ClientError(answer, "PutObject")

    monkeypatch.setattr(type(store._fs), "pipe_file", pipe_file)
    store.put_new("key", b"ours")
    with pytest.raises(CheckpointExistsError, match="other bytes"):
        store.put_new("key", b"theirs")


def test_gcsfs_s_errors_are_told_apart():
    retry = pytest.importorskip("gcsfs.retry")
    from google.auth import exceptions as auth

    def after(error, *causes):
        whole = error
        for cause in causes:
            error.__cause__ = cause
            error = cause
        return whole

    def refused(code):
        return retry.HttpError({"code": code, "message": "no"})

    hiccup = auth.RefreshError(auth.TransportError("no route"))
    for error, kind in (
        (refused(401), StorePermanentError),
        (refused("403"), StorePermanentError),
        (refused(408), StoreTransientError),
        (refused(429), StoreTransientError),
        (refused(501), StorePermanentError),
        (refused(503), StoreTransientError),
        (retry.HttpError(), StoreTransientError),
        (after(refused(401), auth.RefreshError("invalid_grant")), StorePermanentError),
        (after(refused(401), auth.RefreshError("busy", retryable=True)), StoreTransientError),
        (after(refused(401), hiccup, auth.TransportError("no route")), StoreTransientError),
        (auth.TransportError("no route"), StoreTransientError),
        (auth.DefaultCredentialsError("none"), StorePermanentError),
        (auth.OAuthError('Error code 503: {"code": 503}'), StoreTransientError),
        (auth.RefreshError("not acquired", '{"error": {"code": 403}}'), StorePermanentError),
        (auth.RefreshError("not acquired", '{"error": {"code": 503}}'), StoreTransientError),
        (auth.TransportError("no service account. Status: 404"), StorePermanentError),
    ):
        assert class_of(error) is kind, repr(error)
