"""An endpoint in the hands of somebody else costs seconds and little memory, and gets nothing.

Each attack runs against a process of its own, whose peak of memory and seconds are measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import hostile_servers as servers
import pytest

pytestmark = pytest.mark.matrix

MEMORY = 300 * servers.MIB
SECONDS = 30.0  # of a processor: what an attack costs otherwise has no end
PAGES = 1001  # requests, which end any listing
CALLS = {
    "quick": ("read", "list", "read_into"),
    "s3fs": ("read", "list", "read_into", "size", "put", "put_new", "delete", "abandon"),
}
BYTES = {"read", "read_into", "size", "put", "put_new", "delete"}
HARMLESS = {
    servers.endless_chunks: {"read_into"},  # no more is read than was asked for
    servers.many_tags: BYTES,  # no attack but on who looks for a listing
    servers.entities: BYTES,
}


def attacked(kind, server, calls):
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "FSSPEC_", "BOTO_")) and not name.lower().endswith("_proxy")
    }
    process = subprocess.run(
        [sys.executable, servers.__file__, kind, server.endpoint, *calls],
        env={**environ, "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(process.stdout)


def check_cost(said):
    """Seconds of the machine's processors: it may be busy with others."""
    assert said["peak"] < MEMORY
    slow = {call: one for call, one in said["calls"].items() if one["cpu"] > SECONDS}
    assert not slow
    assert max(one["wall"] for one in said["calls"].values()) < 60


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("attack", servers.ATTACKS)
def test_no_answer_costs_much(kind, attack):
    with servers.recording() as (other, asked), servers.serving(attack, other) as server:
        said = attacked(kind, server, CALLS[kind])
    check_cost(said)
    for call, one in said["calls"].items():
        if call not in HARMLESS.get(attack, ()):
            assert one["came"].startswith(("Store", "Answered")) or "more than" in one["text"], (
                call,
                one,
            )
    assert asked == []


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("attack", servers.LISTINGS)
def test_no_listing_goes_on_for_ever(kind, attack):
    with servers.serving(attack) as server:
        said = attacked(kind, server, ["list"])
        assert len(server.asked) <= PAGES
    check_cost(said)
    assert said["calls"]["list"]["came"] == "StorePermanentError", said


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("attack", [servers.redirect, servers.found])
def test_a_redirect_to_another_host_is_told_and_not_followed(kind, attack):
    with servers.recording() as (other, asked), servers.serving(attack, other) as server:
        said = attacked(kind, server, [*CALLS[kind], "download"])
        assert all("the-session-token" in one.decode() for one in server.asked)
    assert asked == []
    for one in said["calls"].values():
        assert "'127.0.0.1'" in one["text"], one
        assert "the-session-token" not in one["text"]
