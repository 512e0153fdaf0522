"""A folder store where the kernel or the file system refuses what others can: links, `/proc`."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from bt_lightning.localdir import rename_noreplace
from bt_lightning.localdir.file_locks import try_lock
from tests.kernels import KERNELS, can

_PUBLISHES = """
import json, sys
from pathlib import Path
from tests.kernels import KERNELS
from tests.oddities import committed
KERNELS[sys.argv[1]]()
from bt_lightning.errors import CheckpointExistsError
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.store.lease import Lease
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.transfer.publish import publish
root = Path(sys.argv[2])
store = LocalStore(root / "store")
for step in (1, 2):
    committed(root / "disk", f"c{step}", step)
lease = Lease(store, "p", "me")
lease.take()
for found in list_committed(root / "disk").found:
    publish(store, "p", found)
store.put_new("new", b"one")
store.put_new("new", b"one")
try:
    store.put_new("new", b"two")
except CheckpointExistsError:
    print(json.dumps(sorted(info.key for info in store.list(""))))
"""

_RACES = """
import sys
from pathlib import Path
from tests.kernels import KERNELS
KERNELS[sys.argv[1]]()
from bt_lightning.errors import CheckpointExistsError
from bt_lightning.store.backends.local_folder import LocalStore
store, mine = LocalStore(Path(sys.argv[2])), sys.argv[3].encode() * 5000
print("ready", flush=True)
sys.stdin.readline()
for number in range(40):
    try:
        store.put_new(f"{number}", mine)
        print(number)
    except CheckpointExistsError:
        pass
"""

_DIES_OVER_ITS_CLAIM = """
import os, signal, sys
from pathlib import Path
from tests.kernels import KERNELS
KERNELS[sys.argv[1]]()
from bt_lightning.store.backends.local_folder import LocalStore
rename = os.rename
def last(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
os.rename = last
LocalStore(Path(sys.argv[2])).put_new("key", b"of the dead")
"""


@pytest.fixture(params=KERNELS)
def kernel(request):
    if not can(request.param):
        pytest.skip(f"this machine gives no process a kernel with {request.param}")
    return request.param


def test_a_store_works_and_leaves_nothing_of_its_own_about(kernel, tmp_path):
    done = _run(_PUBLISHES, kernel, str(tmp_path))
    keys = json.loads(done)
    assert {"new", "p/c1/bt_manifest.json", "p/c2/bt_manifest.json"} <= set(keys)
    assert not [key for key in keys if ".part" in key or ".claim" in key]


def test_of_several_writers_of_one_name_one_has_it(kernel, tmp_path):
    """A lease and a manifest depend on it."""
    (tmp_path / "store").mkdir()
    command = [sys.executable, "-c", _RACES, kernel, str(tmp_path / "store")]
    writers = [
        subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in "abcd"
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    said = [writer.communicate(timeout=60)[0].split() for writer in writers]
    won = dict(zip("abcd", said, strict=True))
    assert sorted(int(number) for taken in won.values() for number in taken) == list(range(40))
    for name, taken in won.items():
        for number in taken:
            assert (tmp_path / "store" / number).read_bytes() == name.encode() * 5000
    assert len(list((tmp_path / "store").iterdir())) == 40


def test_the_claim_of_a_writer_that_was_killed_is_broken(tmp_path):
    kernel = "no links, nothing modern"
    if not can(kernel):
        pytest.skip("this machine has no seccomp")
    command = [sys.executable, "-c", _DIES_OVER_ITS_CLAIM, kernel, str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == -9
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".claim", ".part"]
    code = _RACES.replace("range(40)", '["key"]')
    command = [sys.executable, "-c", code, kernel, str(tmp_path), "b"]
    done = subprocess.run(
        command, input="go\n", capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["ready", "key"]
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".part"] == ["key"]


def _run(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_claim_that_was_broken_before_its_lock_is_made_again(tmp_path, monkeypatch):
    """Else two writers would each believe that the name is theirs alone."""
    broken = []

    def lock_late(descriptor):
        if not broken:  # somebody took the new claim for a dead one, whose inode it has
            broken.append(True)
            (tmp_path / ".name.claim").unlink()
        return try_lock(descriptor)

    monkeypatch.setattr(rename_noreplace, "try_lock", lock_late)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with rename_noreplace._claimed(folder, "name"):
            assert (tmp_path / ".name.claim").exists()
            second = os.open(tmp_path / ".name.claim", os.O_RDWR)
            assert not try_lock(second)
            os.close(second)
    finally:
        os.close(folder)
    assert broken
    assert list(tmp_path.iterdir()) == []
