"""How a rank hears that another is gone, and when it is not; the ranks are real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch

from bt_lightning.session import rank_liveness
from bt_lightning.session.rank_exchange import second_connection
from bt_lightning.session.rank_liveness import LivenessCaller, LivenessListener

if TYPE_CHECKING:
    from collections.abc import Iterator

CALL = """
import os, sys, time
from bt_lightning.session.rank_liveness import LivenessCaller
line = LivenessCaller("127.0.0.1", sys.argv[1], int(sys.argv[2]))
line.poll(0)
print("called", flush=True)
if sys.argv[3] == "forks" and os.fork() == 0:
    time.sleep(600)
for said in sys.stdin:
    line.close()
    break
else:
    line.poll(600)
"""


@pytest.fixture
def host() -> Iterator[LivenessListener]:
    made = LivenessListener("127.0.0.1", 2)
    yield made
    made.close()


@pytest.fixture
def call(host: LivenessListener) -> Iterator[Any]:
    """Start a process that calls as rank 1; it and what it forked are gone after the test."""
    started: list[subprocess.Popen[str]] = []

    def call(how: str = "") -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(CALL), host.address, "1", how],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        assert started[-1].stdout.readline() == "called\n"
        for _ in range(3):  # the call, its hello
            host.poll(0.05)
        return started[-1]

    yield call
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def lost_within(line: LivenessListener | LivenessCaller, limit_s: float) -> int | None:
    until = time.monotonic() + limit_s
    while line.lost() is None and time.monotonic() < until:
        line.poll(0.05)
    return line.lost()


@pytest.mark.parametrize("how", ["", "forks"])
def test_a_process_that_dies_is_lost_though_its_children_live(host, call, how):
    process = call(how)
    assert lost_within(host, 0.3) is None
    process.kill()
    assert lost_within(host, 60) == 1


def test_a_process_that_is_stopped_is_not_lost(host, call, monkeypatch):
    monkeypatch.setattr(rank_liveness, "_RECONNECT_S", 0.1)
    process = call()
    process.send_signal(signal.SIGSTOP)
    assert lost_within(host, 1) is None


def test_who_leaves_is_not_lost(host, call, monkeypatch):
    monkeypatch.setattr(rank_liveness, "_RECONNECT_S", 0.1)
    process = call()
    process.communicate("leave\n")
    assert lost_within(host, 1) is None


def test_a_line_that_is_made_again_loses_nobody(host, call, monkeypatch):
    monkeypatch.setattr(rank_liveness, "_RECONNECT_S", 1.0)
    call().kill()
    host.poll(0.2)
    call()
    assert lost_within(host, 2) is None


def test_the_end_of_rank_0_is_noticed_by_the_others():
    host = LivenessListener("127.0.0.1", 2)
    line = LivenessCaller("127.0.0.1", host.address, 1)
    line.poll(0)
    for _ in range(3):
        host.poll(0.05)
    assert lost_within(line, 0.2) is None
    for part in (*host._connections, host._listener):  # as the kernel does when the process dies
        part.close()
    assert lost_within(line, 60) == 0
    line.close()
    host._selector.close()


def test_a_stranger_is_not_taken_for_a_rank(host, call):
    """Who does not know the token can neither stand for a rank nor keep one out."""
    port = int(host.address.split()[0])
    strangers = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
    for stranger in strangers:
        stranger.sendall(b"x" * 16 + (1).to_bytes(4, "big"))
    for _ in range(100):
        host.poll(0.01)
    assert not host._connections
    assert not host._pending
    call()
    assert list(host._connections.values()) == [1]
    for stranger in strangers:
        stranger.close()


def test_a_connection_of_our_own_is_not_held_by_a_wait_in_another():
    """As of torch before 2.8, whose stores cannot be cloned."""
    server = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store = torch.distributed.PrefixStore("group", server)
    zero, one = second_connection(store), second_connection(store)
    zero.set("key", "value")
    assert one.get("key") == b"value"
    files = torch.distributed.HashStore()
    assert second_connection(files) is files
