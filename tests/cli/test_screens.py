"""Every screen and every JSON as a person approved it: what changes is seen in a diff."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from explorer_pilot import explored
from safetensors.torch import save

from bt_lightning.log_kinds import EVENTS
from bt_lightning.manage.directory_checkpoints import DirectoryCheckpoints
from bt_lightning.path_layout import job_prefix
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.transfer.publish import publish


def files(value):
    adapter = {"base_model_name_or_path": "Qwen/Qwen3-8B", "r": 16}
    return {
        "model.safetensors": save(
            {"layers.0.weight": torch.full((2, 3), value), "layers.1.weight": torch.ones(4).half()},
            metadata={"format": "pt"},
        ),
        "trainer.json": json.dumps({"epoch": value, "loops": [1, {"done": True}]}).encode(),
        "notes/read.md": b"# Title\n",
        **({"adapter_config.json": json.dumps(adapter).encode()} if value == 20.0 else {}),
    }


@pytest.fixture
def root(tmp_path, make, monkeypatch):
    """A directory with three checkpoints, one of them protected, and the events of their run."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "ck"
    for step in (3, 20, 100):
        make(root, f"checkpoint-{step}", step, files=files(float(step)))
    events = [
        {
            "event": "save",
            "at": 1000.0 + step,
            "began": 999.0 + step,
            "number": number,
            "step": step,
        }
        | {"checkpoint_id": f"checkpoint-{step}", "call_ms": 4.0, "guard_ms": 6.0, "copy_ms": 9.0}
        | {"decision": "skipped" if step == 20 else "saved"}
        for number, step in ((1, 3), (2, 20), (1, 100))
    ]
    events += [
        {"event": "durable", "at": 1001.0 + step, "checkpoint": f"checkpoint-{step}"}
        | {"bytes": 1000 * step, "write_s": 0.25, "local_durable_s": 0.5}
        for step in (3, 100)
    ]
    (root / ".bt_lightning").mkdir(exist_ok=True)
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (root / ".bt_lightning" / EVENTS.file).write_text(lines)
    return root


@pytest.fixture
def store(root, tmp_path, make):
    store = LocalStore(tmp_path / "store")
    for step in (3, 20, 100):
        local = make(tmp_path / "source", f"checkpoint-{step}", step, files=files(float(step)))
        publish(store, job_prefix("my-project", "job-7", 0), local)
    return store


AT = ("--project", "my-project", "--job-id", "job-7")


def settled_text(text):
    """Without what is never the same twice."""
    text = re.sub(r'("timestamp": )"[^"]+"', r'\1"<time>"', text)
    text = re.sub(r'("(?:at|disk_free)": )[0-9.]+', r"\1<now>", text)
    text = re.sub(r"saved .* ago", "saved <ago>", re.sub(r"[0-9.]+ [KMGT]?B free", "<free>", text))
    text = re.sub(r"(-trash/)\d+", r"\1<time>", text)
    then = r"\d{4}-(?!01-02T)\d\d-\d\dT[\d:]{8}\+00:00"
    return re.sub(then, "a time when this test ran", text)  # as long, so that tables fit


OF_A_STORE = [
    "checkpoints list -o csv",
    "checkpoints list --sort metric:val_loss --order desc",
    "checkpoints files latest -o json",
    "checkpoints files latest -o csv",
    "checkpoints show checkpoint-20",
    "checkpoints show checkpoint-20 -o csv",
    "checkpoints diff checkpoint-3 checkpoint-20",
    "checkpoints diff checkpoint-3 checkpoint-20 -o json",
    "checkpoints diff checkpoint-3 checkpoint-20 -o csv",
    "checkpoints urls --checkpoint-name checkpoint-20",
    "checkpoints verify --deep",
    "checkpoints verify -o json",
    "checkpoints verify -o csv",
    "checkpoints delete --keep-last 1 --dry-run",
    "checkpoints delete --keep-last 1 --dry-run -o json",
    "checkpoints delete --keep-last 1 --dry-run -o csv",
    "checkpoints delete checkpoint-3 --yes --trash 30",
    "checkpoints trash list",
    "checkpoints trash list -o json",
    "checkpoints trash list -o csv",
    "jobs show job-7",
    "projects show my-project",
    "projects list -o json",
    "checkpoints show nothing",
    "checkpoints show nothing -o json",
]
OF_A_DIRECTORY = ["status", "status -o json", "checkpoints list -o json"]
CODES = {"checkpoints diff": 1, "checkpoints show nothing": 10}


def run_all(cli, commands, *rest):
    said = []
    for command in commands:
        code = next((code for start, code in CODES.items() if command.startswith(start)), 0)
        done = cli(*command.split(), *rest, code=code)
        said.append(f"$ bt-lightning {command}\n{done.stdout}{done.stderr}")
    return settled_text("\n".join(said))


def test_the_screens_of_a_store(cli, store, golden, tmp_path):
    cli("checkpoints", "protect", "checkpoint-20", "--store", store.name, *AT, "--by", "ada")
    own = [command for command in OF_A_STORE if not command.startswith(("jobs", "projects"))]
    golden("store.txt", run_all(cli, own, "--store", store.name, *AT), tmp_path)
    more = [command for command in OF_A_STORE if command.startswith(("jobs", "projects"))]
    golden("store-jobs.txt", run_all(cli, more, "--store", store.name), tmp_path)


def test_the_screens_of_a_directory(cli, root, golden, tmp_path, monkeypatch):
    monkeypatch.setenv("BT_TRAINING_JOB_ID", "job-7")
    golden("directory.txt", run_all(cli, OF_A_DIRECTORY, "--dir", root), tmp_path)
    cli("report", "--dir", root, "--output", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    made = r"<footer>bt_lightning \S+, \S+ \S+\. "
    golden("report.html", re.sub(made, "<footer>", text), tmp_path)
    cli("trace", "--dir", root, "--output", tmp_path / "trace.json")
    golden("trace.json", (tmp_path / "trace.json").read_text(), tmp_path)


STEPS = {
    "checkpoints": (),
    "filtered": ("slash", "2", "0", "enter"),
    "sorted": ("escape", "s", "S"),
    "files": ("enter",),
    "tensors": ("end", "up", "enter"),
    "text": ("escape", "end", "enter"),
    "manifest": ("1", "o"),
    "marked": ("1", "space"),
    "delete": ("D",),
    "protect": ("n", "p"),
    "export": ("escape", "e"),
    "actions": ("escape", "a"),
    "difference": ("escape", "home", "d"),
    "keys": ("question_mark",),
}
WAITS = {"delete": "This frees", "difference": "moved by"}


@pytest.mark.parametrize("width", [60, 100, 200])
def test_the_screens_of_the_explorer(root, golden, tmp_path, monkeypatch, width):
    monkeypatch.setenv("BT_TRAINING_JOB_ID", "job-7")
    shown = []

    async def walk(it):
        for name, keys in STEPS.items():
            await it.press(*keys)
            if name in WAITS:
                await it.shows(WAITS[name])
                await it.until(lambda: it.main.under_way is None)
                await it.settled()
            shown.append(f"==== {name}\n{it.text()}")

    monkeypatch.chdir(tmp_path)  # so that the path of the directory is the same in each run
    explored(DirectoryCheckpoints(Path(root.name)), walk, size=(width, 24))
    golden(f"explorer-{width}.txt", "\n".join(shown), tmp_path)
