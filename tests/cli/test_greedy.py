"""No file costs whoever looks into it more than a moment, and a little memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys

import greedy
import pytest

from bt_lightning.path_layout import MANIFEST

pytestmark = pytest.mark.matrix

MEMORY = 300 * 1000 * 1000
CPU_S = 20  # seconds: of what an attack costs otherwise there is no end
PATIENCE_S = 120
LOOK = """
import io, json, os, sys, time
from bt_lightning.errors import CheckpointError
from bt_lightning.tensor_files.pickled_tensors import parse_pickle, parse_zip
from bt_lightning.tensor_files.tensor_headers import header_bytes, parse_header

def look(path, kind):
    with open(path, "rb") as file:
        if kind == "zip":
            return parse_zip(file, "f")
        if kind == "pickle":
            return parse_pickle(file.read(), "f")
        size = os.fstat(file.fileno()).st_size
        return parse_header(file.read(header_bytes(file.read(8), size, "f")), size, "f")

began = time.process_time()
try:
    said = f"{len(look(*sys.argv[1:]).tensors)} tensors"
except CheckpointError as error:
    said = str(error)
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
print(json.dumps([said, time.process_time() - began, peak]))
"""


def limits():
    """In the child: a program that wants more is ended."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))


def limited(*command):
    """Run a Python program that may take so much memory and so much of a processor."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        preexec_fn=limits,
        check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith("BT_")},
    )
    assert done.returncode >= 0, (done.returncode, done.stderr[-2000:])
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    return done


CASES = [
    *(("pickle", name) for name in greedy.PICKLES),
    *(("zip", name) for name in greedy.ZIPS),
    *(("header", name) for name in greedy.HEADERS),
]


def bytes_of(kind, name):
    if kind == "pickle":
        return greedy.PICKLES[name]
    return (greedy.ZIPS if kind == "zip" else greedy.HEADERS)[name]()


@pytest.mark.parametrize(("kind", "name"), CASES, ids=lambda word: word)
def test_what_is_made_to_be_dear_is_cheap_to_look_into(tmp_path, kind, name):
    (tmp_path / "f").write_bytes(bytes_of(kind, name))
    said, _, peak = json.loads(limited("-c", LOOK, tmp_path / "f", kind).stdout)
    assert peak < 200_000_000
    if kind == "pickle" and name in {"nones", "doubled", "a thousandfold", "lists", "long names"}:
        assert "too large to look into" in said


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Committed checkpoints of one dear file each."""
    from bt_lightning.localdir.commit import commit
    from bt_lightning.manifest import Manifest

    root = tmp_path_factory.mktemp("checkpoints")
    made = {
        "floats.ckpt": greedy.zipped(greedy.PICKLES["floats"]),
        "doubled.pt": greedy.zipped(greedy.PICKLES["doubled"]),
        "names.bin": greedy.zipped(greedy.PICKLES["long names"]),
        "members.ckpt": greedy.ZIPS["a zip of a hundred thousand members"](),
        "model.safetensors": greedy.tensors(95_000),
    }
    for step, (path, data) in enumerate(made.items()):
        name = path.partition(".")[0]

        def describe(entries, name=name, step=step):
            day = "2026-01-02T00:00:05+00:00"
            facts = {"checkpoint_id": name, "generation": 1, "step": step, "epoch": 0}
            return Manifest(**facts, created_at=day, files=entries, metrics={})

        commit(root / name, root, {path: lambda data=data: iter([data])}, describe)
    return root


SHOWN = [
    ("floats", ()),
    ("doubled", ()),
    ("names", ("-o", "json")),
    ("members", ("--tensors",)),
    ("model", ()),
    ("model", ("--tensors",)),
    ("model", ("-o", "json")),
]


@pytest.mark.parametrize(("name", "more"), SHOWN, ids=str)
def test_show_says_what_it_can_of_it(checkpoints, name, more):
    done = limited("-m", "bt_lightning", "checkpoints", "show", name, "--dir", checkpoints, *more)
    assert done.returncode == 0, done.stderr
    assert ("too large to look into" in done.stderr) == (name in {"doubled", "names"})
    if (name, *more) == ("model", "--tensors"):
        assert "1,000 of 95,000 are shown" in done.stdout
    if (name, *more[1:]) == ("model", "json"):
        assert len(json.loads(done.stdout)["tensors"]) == 95_000


def test_diff_says_how_much_more_there_is(checkpoints):
    done = limited(
        "-m", "bt_lightning", "checkpoints", "diff", "floats", "model", "--dir", checkpoints
    )
    assert done.returncode == 1
    assert "1,000 of 95,000 are shown" in done.stdout


def test_a_folder_store_of_links_and_pipes_is_listed_without_them(tmp_path, checkpoints):
    """A link to a device has no end, one to a folder above no bottom, and a pipe answers nobody."""
    store = tmp_path / "store"
    node = store / "training_projects/p/jobs/j/rank-0"
    shutil.copytree(checkpoints / "doubled", node / "doubled")
    for name, target in (("zero", "/dev/zero"), ("up", str(store)), ("gone", "nowhere")):
        (node / name).mkdir()
        (node / name / MANIFEST).symlink_to(target)
        (node / f"link-{name}").symlink_to(target)
    (node / "pipe").mkdir()
    os.mkfifo(node / "pipe" / MANIFEST)
    os.mkfifo(node / "run.log")
    (node / "real.log").write_bytes(b"x" * 10)
    place = ("--store", store.as_uri(), "--project", "p")
    done = limited("-m", "bt_lightning", "checkpoints", "list", *place, "-o", "json")
    assert [row["checkpoint_id"] for row in json.loads(done.stdout)["checkpoints"]] == ["doubled"]
    done = limited("-m", "bt_lightning", "jobs", "list", *place, "-o", "json")
    assert json.loads(done.stdout)["jobs"][0]["files"]["number"] == 1
    for command in (("show", "doubled"), ("verify", "doubled")):
        assert limited("-m", "bt_lightning", "checkpoints", *command, *place).returncode == 0
    got = ("--target-directory", tmp_path / "got")
    assert limited("-m", "bt_lightning", "jobs", "download", "j", *place, *got).returncode == 0
    assert [path.name for path in (tmp_path / "got").iterdir()] == ["real.log"]
    assert limited("-m", "bt_lightning", "jobs", "delete", "j", *place, "--yes").returncode == 0
    assert (node / "up" / MANIFEST).is_symlink()
