"""Session tokens expire; who renews them in time, or late, loses nothing, whatever asks."""

from __future__ import annotations

import json
import os
import sys

import pytest

from bt_lightning.errors import StorePermanentError, StoreTransientError
from bt_lightning.store.open_store import open_store
from bt_lightning.store.s3 import botocore_client_and_credentials
from bt_lightning.store.s3.s3_store import S3Store
from bt_lightning.store.s3.signed_reads import SignedReadStore

pytestmark = pytest.mark.matrix

DATA = b"bytes" * 100
PROGRAM = """
import pathlib
print(pathlib.Path({file!r}).read_text())
"""


class User:
    """Where a user's credentials come from: what is in `home` now."""

    def __init__(self, home, source, expires=None):
        self.home, self.source, self.expires = home, source, expires
        (home / ".aws").mkdir()
        if source == "program":
            (home / "give.py").write_text(PROGRAM.format(file=str(home / "given.json")))
            line = f"credential_process = {sys.executable} {home / 'give.py'}"
            (home / ".aws" / "config").write_text(f"[default]\n{line}\n")

    def renew(self, token):
        """A new file takes the place of the old one."""
        if self.source == "program":
            given = {"Version": 1, "AccessKeyId": "AKIAOFTHETESTS", "SecretAccessKey": "secret"}
            given |= {"SessionToken": token}
            given |= {"Expiration": self.expires} if self.expires else {}
            (self.home / "given.json").write_text(json.dumps(given))
            return
        lines = [
            "[default]",
            "aws_access_key_id = AKIAOFTHETESTS",
            "aws_secret_access_key = secret",
        ]
        part = self.home / ".aws" / "part"
        part.write_text("\n".join([*lines, f"aws_session_token = {token}", ""]))
        part.replace(self.home / ".aws" / "credentials")


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in os.environ:
        if name.startswith(("AWS_", "FSSPEC_", "BOTO_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def server(proxied, s3):
    """moto, which believes every signature, behind what lets one token in."""
    proxy = proxied(s3)
    proxy.token = "token-1"
    return proxy


@pytest.fixture
def opened(server, s3_url, monkeypatch):
    monkeypatch.setattr(botocore_client_and_credentials, "_AGAIN_S", 0.0)

    def opened(kind=S3Store, **options):
        where = {"endpoint_url": server.endpoint, "region_name": "us-east-1"}
        store = open_store(s3_url, {"client_kwargs": where, **options})
        assert isinstance(
            store, SignedReadStore if kind is SignedReadStore else SignedReadStore | S3Store
        )
        return S3Store(s3_url, {"client_kwargs": where, **options}) if kind is S3Store else store

    return opened


def everything(store, memory, name):
    """Each way to the server: what is small, sent, read, listed, and what only botocore asks."""
    store.put(f"{name}/small", DATA)
    store.send(memory(DATA), f"{name}/sent")
    assert store.read(f"{name}/small") == DATA
    target = memoryview(bytearray(len(DATA)))
    store.read_into(f"{name}/sent", 0, target)
    assert target == DATA
    assert store.size(f"{name}/sent") == len(DATA)
    assert [info.key for info in store.list(name)] == [f"{name}/sent", f"{name}/small"]
    store.put_new(f"{name}/new", DATA)
    store.delete([f"{name}/new", f"{name}/small", f"{name}/sent"])
    assert list(store.list(name)) == []


@pytest.mark.parametrize("code", ["ExpiredToken", "RequestExpired", "InvalidToken"])
@pytest.mark.parametrize("source", ["file", "program"])
def test_credentials_that_were_renewed_are_read_again(home, server, opened, memory, source, code):
    user, server.expired = User(home, source), code
    user.renew("token-1")
    store = opened()
    everything(store, memory, "before")
    for token in ("token-2", "token-3"):
        server.token = token
        user.renew(token)
        everything(store, memory, "after")


WAYS = {
    "put": lambda store, memory: store.put("k", DATA),
    "put_new": lambda store, memory: store.put_new("other", DATA),
    "send": lambda store, memory: store.send(memory(DATA), "k"),
    "read": lambda store, memory: store.read("k"),
    "read_into": lambda store, memory: store.read_into("k", 0, memoryview(bytearray(1))),
    "size": lambda store, memory: store.size("k"),
    "list": lambda store, memory: list(store.list("")),
    "delete": lambda store, memory: store.delete(["k"]),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_renews_a_token_by_itself(home, server, opened, memory, way):
    """By the answer, since a program is not known to have another one before it is asked."""
    user = User(home, "program")
    user.renew("token-1")
    store = opened()
    store.put("k", DATA)
    server.token = "token-2"
    user.renew("token-2")
    WAYS[way](store, memory)


@pytest.mark.parametrize("way", ["read", "list", "read_into"])
def test_quick_requests_go_on_with_the_new_token(home, server, opened, memory, way):
    user = User(home, "file")
    user.renew("token-1")
    store = opened(SignedReadStore)
    store.put("k", DATA)
    assert store.read("k") == DATA
    server.token = "token-2"
    user.renew("token-2")
    WAYS[way](store, memory)


def test_a_file_that_changed_is_read_before_its_token_expires(home, server, opened):
    user = User(home, "file")
    user.renew("token-1")
    store = opened()
    store.put("k", DATA)
    server.token = "token-2"
    user.renew("token-2")
    server.reset()
    assert store.read("k") == DATA
    assert server.seen == ["GET"], "the old token was not tried"


@pytest.mark.parametrize("way", WAYS)
def test_a_token_that_nobody_renewed_is_named_and_may_come_yet(home, server, opened, memory, way):
    user = User(home, "file")
    user.renew("token-1")
    store = opened()
    store.put("k", DATA)
    server.token = "token-2"
    with pytest.raises(StoreTransientError, match=r"session token, have expired.*renew them"):
        WAYS[way](store, memory)
    user.renew("token-2")
    WAYS[way](store, memory)


def test_a_token_that_was_given_is_named_too(home, server, opened, memory):
    store = opened(key="AKIAOFTHETESTS", secret="secret", token="token-0")
    for act in WAYS.values():
        with pytest.raises(StoreTransientError, match=r"session token, have expired") as caught:
            act(store, memory)
        assert "token-0" not in str(caught.value)


def test_a_file_that_is_gone_for_a_moment_ends_nothing(home, server, opened):
    user = User(home, "file")
    user.renew("token-1")
    store = opened()
    store.put("k", DATA)
    (home / ".aws" / "credentials").write_text("[default]\naws_access_key_id = half")
    assert store.read("k") == DATA
    server.token = "token-2"
    with pytest.raises(StoreTransientError, match="session token"):
        store.read("k")
    user.renew("token-2")
    assert store.read("k") == DATA


def test_a_program_that_fails_for_a_moment_ends_nothing(home, server, opened):
    """One that names an hour is asked again before that hour."""
    user = User(home, "program", expires="2020-01-01T00:00:00Z")
    user.renew("token-1")
    store = opened()
    with pytest.raises(StorePermanentError, match="credentials"):
        store.read("k")  # expired when it came
    user.expires = "2199-01-01T00:00:00Z"
    user.renew("token-1")
    assert store.read("k") is None
