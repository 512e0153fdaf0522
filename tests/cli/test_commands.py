"""The command line, run as its users run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from bt_lightning.localdir.commit import commit
from bt_lightning.localdir.event_log import note
from bt_lightning.localdir.list_and_verify_checkpoints import LocalCheckpoint, read_manifest
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import job_prefix
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.transfer.publish import publish

if TYPE_CHECKING:
    from pathlib import Path


def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bt_lightning", *args],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "COLUMNS": "120", **env},
        check=False,
    )


def make(root: Path, name: str, step: int, metric: float = 0.5) -> LocalCheckpoint:
    def describe(files):
        return Manifest(
            checkpoint_id=name,
            generation=1,
            step=step,
            epoch=1,
            created_at="2026-01-02T03:04:05+00:00",
            files=files,
            metrics={"val_loss": metric},
        )

    manifest = commit(root / name, root, {"trainer.json": lambda: iter([b"{}" * 600])}, describe)
    return LocalCheckpoint(root / name, manifest)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "ck"
    for step in (20, 100, 3):
        make(folder, f"checkpoint-{step}", step)
    return folder


def test_help_names_the_commands_and_needs_no_torch():
    done = run("--help")
    assert done.returncode == 0
    assert "checkpoints" in done.stdout
    probe = "import sys; from bt_lightning.cli.app import main\ntry: main(['--help'])\n"
    probe += "except SystemExit: print({'torch', 'fsspec', 'rich'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", probe], text=True).endswith("set()\n")


def test_verify_tells_whole_from_damaged_and_ends_with_12(root):
    assert run("checkpoints", "verify", "--dir", str(root)).returncode == 0
    file = root / "checkpoint-20" / "trainer.json"
    data = bytearray(file.read_bytes())
    data[10] ^= 1
    file.write_bytes(data)
    done = run("checkpoints", "verify", "--dir", str(root))
    assert done.returncode == 12
    assert done.stdout.count("whole   ") == 2
    assert "trainer.json" in done.stdout
    assert run("checkpoints", "verify", str(root / "checkpoint-3")).returncode == 0
    assert run("checkpoints", "verify", str(root / "nothing")).returncode == 12


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("checkpoints", "list"), 2, "name a directory"),
        (("checkpoints", "list", "--dir", "{}/nowhere"), 2, "no directory"),
        (
            ("checkpoints", "list", "--store", "nope://x", "--job-id", "j"),
            2,
            "no fsspec filesystem",
        ),
        (("checkpoints", "list", "--store", "file://{}/none"), 10, "nothing is committed"),
        (("checkpoints", "list", "--dir", "{}", "--sort", "age"), 2, "cannot sort by"),
        (("checkpoints", "list", "--dir", "{}", "--all-jobs"), 2, "name it with --store"),
        (("nonsense",), 2, "No such command"),
    ],
)
def test_wrong_usage_ends_with_its_code_and_without_a_traceback(args, code, says, tmp_path):
    done = run(*(arg.replace("{}", str(tmp_path)) for arg in args))
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_manifest_is_left_out_and_named(root):
    (root / "checkpoint-20" / "bt_manifest.json").write_text("{}")
    done = run("checkpoints", "list", "--dir", str(root))
    assert done.returncode == 0
    assert "checkpoint-20" in done.stderr
    assert "checkpoint-20" not in done.stdout


def test_escape_sequences_in_metrics_do_not_reach_the_terminal(tmp_path):
    def describe(files):
        return Manifest(
            checkpoint_id="checkpoint-1",
            generation=1,
            step=1,
            epoch=0,
            created_at="2026-01-02T03:04:05+00:00",
            files=files,
            metrics={"\x1b[2Jevil": 1.0},
        )

    commit(tmp_path / "checkpoint-1", tmp_path, {"a": lambda: iter([b"x"])}, describe)
    assert "\x1b[2J" not in run("checkpoints", "list", "--dir", str(tmp_path)).stdout


def test_a_trace_shows_the_spans_of_each_save_where_they_were(tmp_path):
    note(
        tmp_path, "save", began=100.0, checkpoint_id="checkpoint-1", call_ms=2.0, copy_ms=50.0,
        guard_ms=10.0,
    )  # fmt: skip
    note(tmp_path, "durable", checkpoint="checkpoint-1", write_s=0.5)
    note(tmp_path, "published", checkpoint="checkpoint-1", publish_s=0.25)
    note(tmp_path, "of a later version")
    with (tmp_path / ".bt_lightning" / "events.jsonl").open("a") as file:
        file.write('{"event": "save", "at"')  # a kill in the middle of a line
    done = run("trace", "--dir", str(tmp_path), "-o", str(tmp_path / "t.json"))
    assert done.returncode == 0, done.stderr
    assert "1 saves" in done.stdout
    spans = [
        (e["name"], e["tid"], round(e["dur"]))
        for e in json.loads((tmp_path / "t.json").read_text())["traceEvents"]
        if e["ph"] == "X"
    ]
    assert spans == [
        ("save checkpoint-1", 1, 2000),
        ("checkpoint-1", 2, 50_000),
        ("guard checkpoint-1", 1, 10_000),
        ("checkpoint-1", 3, 500_000),
        ("checkpoint-1", 4, 250_000),
    ]


def test_a_trace_of_a_directory_without_events_says_so(tmp_path):
    done = run("trace", "--dir", str(tmp_path))
    assert done.returncode == 10
    assert "has no events" in done.stderr


@pytest.fixture
def store(root, tmp_path):
    """A store with the job `job1` of the project `demo`, as an environment."""
    local = LocalStore(tmp_path / "store")
    for step in (20, 100, 3):
        checkpoint = LocalCheckpoint(
            root / f"checkpoint-{step}", read_manifest(root / f"checkpoint-{step}")
        )
        publish(local, job_prefix("demo", "job1", 0), checkpoint)
    return tmp_path / "store"


def test_list_takes_a_bt_url(store):
    done = run(
        *("checkpoints", "list", "bt://demo", "-o", "json", "--sort", "step", "--order", "desc"),
        BT_STORE_URL=str(store),
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["checkpoints"]
    assert [row["checkpoint_id"] for row in rows] == [f"checkpoint-{n}" for n in (100, 20, 3)]
    named = run(
        "checkpoints", "list", "bt://demo@job1/checkpoint-3", "--store", str(store), "-o", "csv"
    )
    assert [line.split(",")[2] for line in named.stdout.splitlines()[1:]] == ["checkpoint-3"]


def test_verify_takes_bt_urls_and_sees_a_changed_byte(store):
    env = {"BT_STORE_URL": str(store)}
    done = run("checkpoints", "verify", "bt://demo", "bt://demo@job1/checkpoint-3", **env)
    assert done.returncode == 0, done.stderr
    assert "jobs/job1/rank-0/checkpoint-100  step 100, 1,200 bytes" in done.stdout
    file = store / job_prefix("demo", "job1", 0) / "checkpoint-3" / "trainer.json"
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(b"x" + data[1:])
    done = run("checkpoints", "verify", "bt://demo", "bt://demo@job1/checkpoint-3", **env)
    assert done.returncode == 12
    assert "whole    training_projects/demo/jobs/job1/" in done.stdout
    assert "checkpoint-3 is damaged: the bytes of trainer.json" in done.stdout


@pytest.mark.parametrize(
    ("url", "code"),
    [("bt://demo@nope", 10), ("bt://a@b@c", 2), ("bt://loops:r/weights/x", 2), ("nonsense", 2)],
)
def test_a_bad_bt_url_ends_with_its_code_and_one_line(store, url, code):
    done = run("checkpoints", "list", url, BT_STORE_URL=str(store))
    assert done.returncode == code
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_quick_sees_sizes_and_deep_sees_sense(tmp_path):
    def describe(files):
        return Manifest(
            checkpoint_id="c",
            generation=1,
            step=1,
            epoch=0,
            created_at="2026-01-02T03:04:05+00:00",
            files=files,
        )

    streams = {"model.safetensors": lambda: iter([b"nonsense" * 9])}
    commit(tmp_path / "c", tmp_path, streams, describe)
    args = ("checkpoints", "verify", "--dir", str(tmp_path))
    assert run(*args).returncode == 0
    assert run(*args, "--deep").returncode == 12
    file = tmp_path / "c" / "model.safetensors"
    file.write_bytes(b"Nonsense" * 9)
    assert run(*args, "--quick").returncode == 0
    done = run(*args, "-o", "json")
    assert done.returncode == 12
    assert json.loads(done.stdout)["damaged"] == 1
    file.write_bytes(b"short")
    assert run(*args, "--quick").returncode == 12
    assert run(*args, "--quick", "--deep").returncode == 2
