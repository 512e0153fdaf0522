"""`weights pull` from a server over TLS: verified, resumed, and no token for another host."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import shutil
import signal
import subprocess
import time

import pytest

MIB = 1024 * 1024


def noise(size, seed=b"seed"):
    return random.Random(seed).randbytes(size)


def digest_header(data):
    return {"Repr-Digest": f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"}


def test_a_file_comes_in_ranges_and_is_compared_with_the_digest_that_the_server_tells(
    https, config, pull
):
    server = https()
    data = noise(17 * MIB)
    server.files["/w/model.safetensors"] = data
    server.headers["/w/model.safetensors"] = digest_header(data)
    path = config({"source": f"{server.url}/w/model.safetensors"})
    said = pull.inside(path)
    assert "verified by sha256 (1)" in said
    assert pull.files() == {"model.safetensors": data}
    assert len(server.asked("/w/model.safetensors")) == 3
    assert pull.leftovers() == []
    server.seen.clear()
    assert "there already, whole" in pull.inside(path)
    assert server.asked("/w/model.safetensors") == []


def test_a_mount_location_that_ends_with_the_name_of_the_file_is_the_file(https, config, pull):
    server = https()
    server.files["/my x.bin"] = b"weights"
    source = {"source": f"{server.url}/my x.bin?v=1", "mount_location": "/models/my x.bin"}
    pull.inside(config(source))
    assert (pull.root / "models" / "my x.bin").read_bytes() == b"weights"


def test_bytes_that_differ_from_the_digest_are_refused_and_nothing_is_mounted(https, config, pull):
    server = https()
    server.files["/x.bin"] = b"other bytes"
    server.headers["/x.bin"] = digest_header(b"the bytes")
    said = pull.inside(config({"source": f"{server.url}/x.bin"}), code=12)
    assert "damaged" in said
    assert "sha256" in said
    assert not pull.root.exists()


def test_a_token_goes_to_its_own_host_and_to_no_other(https, config, pull, monkeypatch):
    here, there = https(), https()
    here.token, here.redirects = "t0p-s3cret-token", {"/x.bin": f"{there.url}/cdn/x.bin?sig=abcdef"}
    there.files["/cdn/x.bin"] = noise(10 * MIB)
    monkeypatch.setenv("TRUSS_SECRET_http_token", here.token)
    path = config({"source": f"{here.url}/x.bin", "auth_secret_name": "http_token"})
    said = pull.inside(path)
    assert pull.files() == {"x.bin": there.files["/cdn/x.bin"]}
    assert all("authorization" in headers for _, headers in here.seen)
    assert there.seen
    assert not any("authorization" in headers for _, headers in there.seen)
    here.token = "another"
    said = pull.inside(path, "--dry-run", code=22)
    assert "401" in said
    for text in (said, *(str(p.read_bytes()) for p in pull.cache.rglob("*.json"))):
        assert "t0p-s3cret" not in text
        assert "abcdef" not in text


def test_a_redirect_away_from_https_is_not_followed(https, config, pull):
    server = https()
    server.redirects["/x.bin"] = "http://127.0.0.1:9/x.bin"
    assert "not https://" in pull.inside(config({"source": f"{server.url}/x.bin"}), code=22)
    server.redirects["/x.bin"] = "/x.bin"
    assert "more than" in pull.inside(config({"source": f"{server.url}/x.bin"}), code=22)


def test_a_server_without_ranges_is_read_from_the_first_byte_to_the_last(https, config, pull):
    server = https()
    server.ranges = False
    server.files["/x.bin"] = noise(3 * MIB + 7)
    pull.inside(config({"source": f"{server.url}/x.bin"}))
    assert pull.files() == {"x.bin": server.files["/x.bin"]}


@pytest.mark.parametrize("size", [0, 1])
def test_a_file_may_be_empty(https, config, pull, size):
    server = https()
    server.files["/x.bin"] = b"x" * size
    pull.inside(config({"source": f"{server.url}/x.bin"}))
    assert pull.files() == {"x.bin": b"x" * size}


def test_a_server_that_does_not_say_how_long_a_file_is_is_refused(https, config, pull):
    server = https()
    server.ranges = server.lengths = False
    server.files["/x.bin"] = noise(100)
    said = pull.inside(config({"source": f"{server.url}/x.bin"}), code=22)
    assert "how long" in said


def test_an_answer_that_is_cut_off_is_asked_for_again_and_then_an_error(
    https, config, pull, monkeypatch
):
    monkeypatch.setattr("bt_lightning.store.retry.FIRST_WAIT_S", 0.01)
    server = https()
    server.files["/x.bin"] = noise(1000)
    server.cut.add("/x.bin")
    pull.inside(config({"source": f"{server.url}/x.bin"}), code=21)
    assert len(server.asked("/x.bin")) == 5
    assert not pull.root.exists()
    server.cut.clear()
    pull.inside(config({"source": f"{server.url}/x.bin"}))
    assert pull.files() == {"x.bin": server.files["/x.bin"]}


def test_a_file_that_is_replaced_while_it_is_read_is_never_mixed(https, config, pull, monkeypatch):
    monkeypatch.setattr("bt_lightning.store.retry.FIRST_WAIT_S", 0.01)
    server = https()
    server.files["/x.bin"], server.hold_after = noise(20 * MIB, b"old"), 1
    path = config({"source": f"{server.url}/x.bin"})
    with subprocess.Popen(pull.words(path), stderr=subprocess.PIPE, text=True) as process:
        assert server.held.wait(30)
        server.files["/x.bin"] = noise(20 * MIB, b"new")
        server.hold_after = -1
        server.go.set()
        said = process.stderr.read()
    assert process.returncode == 22
    assert "replaced while it was read" in said
    assert not (pull.root / "models").exists()
    pull.inside(path)
    assert pull.files() == {"x.bin": server.files["/x.bin"]}


def test_a_pull_that_is_killed_leaves_no_name_and_the_next_one_goes_on(https, config, pull):
    server = https()
    server.files["/x.bin"], server.hold_after = noise(28 * MIB), 2
    path = config({"source": f"{server.url}/x.bin"})
    with subprocess.Popen(pull.words(path), start_new_session=True) as process:
        assert server.held.wait(30)
        until = time.monotonic() + 30
        while _ranges_written(pull) < 2:
            assert time.monotonic() < until
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (pull.root / "models").exists()
    server.seen.clear()
    server.hold_after = -1
    server.go.set()
    pull(path)
    assert len(server.asked("/x.bin")) == 2
    assert pull.files() == {"x.bin": server.files["/x.bin"]}
    assert list((pull.cache / "incoming").iterdir()) == []


def test_two_pulls_at_once_of_one_cache_read_each_byte_once(https, config, pull):
    server = https()
    server.files |= {f"/{number}.bin": noise(10 * MIB, b"%d" % number) for number in range(2)}
    server.hold_after = 0
    path = config(*({"source": f"{server.url}/{number}.bin"} for number in range(2)))
    with subprocess.Popen(pull.words(path)) as one, subprocess.Popen(pull.words(path)) as two:
        assert server.held.wait(30)
        server.hold_after = -1
        server.go.set()
        assert (one.wait(60), two.wait(60)) == (0, 0)
    for number in range(2):
        spans = server.asked(f"/{number}.bin")
        assert len(spans) == len(set(spans)) == 2
        assert pull.files(str(number)) == {f"{number}.bin": server.files[f"/{number}.bin"]}
    assert "there already" in pull.inside(path)


def _ranges_written(pull):
    return sum(len(path.read_bytes().splitlines()) - 1 for path in pull.cache.rglob("ranges"))


def test_what_arrived_before_a_kill_is_not_asked_for_again_of_the_disk(
    https, config, pull, small_disk
):
    """The room for a file is allocated at once: a disk for one and a half takes it again."""
    disk = small_disk(6 * MIB)
    pull.cache, pull.root = disk / "cache", disk / "root"
    server = https()
    server.files["/x.bin"], server.hold_after = noise(4 * MIB), 0
    path = config({"source": f"{server.url}/x.bin"})
    with subprocess.Popen(pull.words(path), start_new_session=True) as process:
        assert server.held.wait(30)
        os.killpg(process.pid, signal.SIGKILL)
    server.hold_after = -1
    server.go.set()
    pull.inside(path)
    assert pull.files() == {"x.bin": server.files["/x.bin"]}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(4))
def test_kills_at_random_never_leave_other_bytes_under_a_name(https, config, pull, seed):
    """Fifty kills each; now and then mounts and cache are lost as well."""
    server, chance = https(), random.Random(seed)
    server.files |= {f"/{n}.bin": noise((10 + 15 * n) * MIB, b"%d" % n) for n in range(3)}
    path = config(*({"source": f"{server.url}/{n}.bin"} for n in range(3)))
    kills = 0
    while kills < 50:
        with subprocess.Popen(
            pull.words(path),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            until = time.monotonic() + 0.3 + 2 * chance.random()
            while time.monotonic() < until and process.poll() is None:
                time.sleep(0.002)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
        ended = process.returncode == 0
        for n in range(3):
            mounted = pull.root / "models" / str(n) / f"{n}.bin"
            assert mounted.exists() or not ended
            assert not mounted.exists() or mounted.read_bytes() == server.files[f"/{n}.bin"]
        if ended or chance.random() < 0.1:
            shutil.rmtree(pull.root, ignore_errors=True)
            shutil.rmtree(pull.cache, ignore_errors=True)
    pull(path)
    for n in range(3):
        assert pull.files(str(n)) == {f"{n}.bin": server.files[f"/{n}.bin"]}
