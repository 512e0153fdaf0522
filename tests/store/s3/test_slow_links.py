"""A link may be slow: what counts is that the peer makes progress, and not the kernel here."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time

import pytest

from bt_lightning.errors import StoreTransientError

QUIET_S = 1.0
SIZE = 600_000
RATE = 200_000


class Link:
    """Passes one connection after the other on to a server, `rate` bytes a second at most.

    Bytes that it has not passed on stay where they are: its system takes few ahead.
    """

    def __init__(self, port, rate=RATE, stops_after=None):
        self._port, self._rate, self._stops_after = port, rate, stops_after
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self._listener.settimeout(0.05)
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def stop(self):
        self._closing.set()
        for thread in self._threads:  # more are added by the first
            thread.join()
        self._listener.close()

    def _accept(self):
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                thread = threading.Thread(target=self._serve, args=(self._listener.accept()[0],))
                thread.start()
                self._threads.append(thread)

    def _serve(self, client):
        with client, socket.create_connection(("127.0.0.1", self._port)) as server:
            passed = 0
            while not self._closing.is_set():
                stopped = self._stops_after is not None and passed >= self._stops_after
                ready, _, _ = select.select([server] if stopped else [client, server], [], [], 0.05)
                for here in ready:
                    data = here.recv(4096)
                    if not data:
                        return
                    with contextlib.suppress(OSError):
                        (server if here is client else client).sendall(data)
                    passed += len(data) if here is client else 0
                    self._closing.wait(len(data) / self._rate)


@pytest.fixture
def link(weed):
    with contextlib.ExitStack() as stack:

        def start(server=weed, **how):
            link = Link(int(server.endpoint.rpartition(":")[2]), **how)
            stack.callback(link.stop)
            return link

        yield start


@pytest.fixture
def impatient(connect):
    """A store whose peers may be quiet for a second."""

    def impatient(endpoint):
        limits = {"connect_timeout": 5, "read_timeout": QUIET_S, "retries": {"max_attempts": 0}}
        where = {"endpoint_url": endpoint, "region_name": "us-east-1", "verify": False}
        return connect(config_kwargs=limits, client_kwargs=where)

    return impatient


@pytest.fixture(params=["http", "https"])
def slow(request, link, impatient):
    """Open a store by a slow link, also over TLS."""

    def slow(**how):
        if request.param == "http":
            return impatient(link(**how).endpoint)
        made = link(request.getfixturevalue("tls_proxy"), **how)
        return impatient(made.endpoint.replace("http:", "https:"))

    return slow


def test_a_request_may_take_longer_than_a_peer_may_be_quiet(slow, connect, memory):
    """All of it lies in the kernel at once; the answer comes seconds later."""
    data = os.urandom(SIZE)
    began = time.monotonic()
    slow().send(memory(data), "key")
    assert time.monotonic() - began > 2 * QUIET_S
    target = memoryview(bytearray(SIZE))
    connect().read_into("key", 0, target)
    assert target == data


def test_a_download_may_take_longer_too(slow, connect, memory):
    data = os.urandom(SIZE)
    connect().send(memory(data), "key")
    target = memoryview(bytearray(SIZE))
    began = time.monotonic()
    slow().read_into("key", 0, target)
    assert time.monotonic() - began > 2 * QUIET_S
    assert target == data


def test_a_peer_that_takes_no_more_is_left(slow, memory, monkeypatch):
    monkeypatch.setattr("bt_lightning.store.s3.operations.TRIES", 1)
    store = slow(stops_after=100_000)
    began = time.monotonic()
    with pytest.raises(StoreTransientError, match=r"took nothing|did not answer"):
        store.send(memory(os.urandom(SIZE)), "key")
    assert time.monotonic() - began < 10 * QUIET_S
