"""What may lie under the name of a file that somebody else may write, and a process with limits."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

from bt_lightning.localdir.commit import commit
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import DOT_DIR, MANIFEST, PROTECTION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

MOST_MB = 300
MOST_S = 5
"""Of one core's time: how long that takes beside other work is not the program's."""
_MEASURED = """
import atexit, runpy, sys
def tell():
    text = open("/proc/self/status").read()
    print("peak", int(text.partition("VmHWM:")[2].split()[0]) // 1024, file=sys.stderr)
atexit.register(tell)
"""


def fifo(path: Path) -> None:
    """Whoever opens it to read waits for a writer."""
    os.mkfifo(path)


def endless(path: Path) -> None:
    """Has no end."""
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    """Takes no room, and 40 GB when it is read."""
    path.touch()
    os.truncate(path, 40 * 10**9)


def dense(path: Path) -> None:
    """Ten million objects in a text of 30 MB."""
    path.write_bytes(b"[" + b"{}," * 10_000_000 + b"0]")


def deep(path: Path) -> None:
    """A parser by recursion ends at it."""
    path.write_bytes(b"[" * 1_000_000)


def folder(path: Path) -> None:
    """No file at all."""
    (path / "inner").mkdir(parents=True)


def nowhere(path: Path) -> None:
    """A link that leads nowhere: whoever writes through it makes a file there."""
    path.symlink_to(path.parent / "elsewhere" / "made-through-a-link")


def listening(path: Path) -> None:
    """A socket."""
    here = os.getcwd()  # noqa: PTH109 - the path of a socket has at most 108 bytes
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


KINDS = (fifo, endless, sparse, dense, deep, folder, nowhere, listening)

SMALL = (
    *(
        "job.json",
        "stop.json",
        ".job.json.part",
        "events.jsonl",
        "latest.json",
        ".latest.json.part",
    ),
    *("uploading.json", ".uploading.json.part", "store_only.json", "owner", ".owner.part"),
    *("read_straight.json", ".read_straight.json.part"),
    *("worker.lock", "worker.want", "worker.standby", "commit.lock", "run.lock"),
    *("uploads/0123.upload.json", "trash/replaced-x/origin", "tmp/x", "partial/x", "trashed/7"),
)


def committed(root: Path, name: str, step: int, created_at: str = "2030-01-02T03:04:05Z") -> None:
    """Commit a small checkpoint at `root / name`."""

    def describe(files: tuple[object, ...]) -> Manifest:
        return Manifest(
            checkpoint_id=name,
            generation=1,
            step=step,
            epoch=0,
            created_at=created_at,
            files=files,  # type: ignore[arg-type]
        )

    content = {"trainer.json": lambda: [json.dumps({"tree": {}}).encode()]}
    commit(root / name, root, content, describe)


def spoil(root: Path, put: Callable[[Path], None]) -> None:
    """Put one kind of oddity under the name of every small file of ours below `root`.

    Two good checkpoints are there, `good` and `protected`, and the newest, `bad`, has a manifest
    that is none.
    """
    for step, name in enumerate(("good", "protected", "bad"), 1):
        committed(root, name, step)
    (root / "bad" / MANIFEST).unlink()
    put(root / "bad" / MANIFEST)
    put(root / "protected" / PROTECTION)
    for name in SMALL:
        file = root / DOT_DIR / name
        file.parent.mkdir(parents=True, exist_ok=True)
        put(file)


def limited(
    code: str, *arguments: str, environ: Mapping[str, str] | None = None, base: str = ""
) -> tuple[subprocess.CompletedProcess[str], int]:
    """Run Python code with `MOST_S` of a core's time; what came of it, and MB at its peak.

    With `base`, that many MB less: the peak of the process when it had run that code.
    """
    return run_limited([sys.executable, "-c", _MEASURED + base + code, *arguments], environ)


def run_limited(
    command: Sequence[str], environ: Mapping[str, str] | None = None
) -> tuple[subprocess.CompletedProcess[str], int]:
    """Run a command that tells its peak on its last line of stderr."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, **(environ or {})},
        preexec_fn=_limit,
    )
    said, _, peak = done.stderr.rpartition("peak ")
    assert peak.strip().isdecimal(), f"exit status {done.returncode}:\n{done.stderr}"
    done.stderr = said
    return done, int(peak)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (MOST_S, MOST_S + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 24, 1, 2
_CAPABILITY_VERSION_3 = 0x20080522
_STRANGER = 12345


def closed_to_us(path: Path) -> bool:
    """Make the folder `path` one that `as_anybody` cannot read; False if that cannot be done."""
    path.mkdir()
    if os.geteuid() != 0:
        path.chmod(0)
        return True
    try:
        os.chown(path, _STRANGER, _STRANGER)
    except OSError:
        return False
    path.chmod(0o700)
    code = "import os, sys; os.scandir(sys.argv[1])"
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, check=False, preexec_fn=as_anybody)
    return b"PermissionError" in done.stderr


def as_anybody() -> None:
    """In a child before its program begins: root has no more rights than others, and never will."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then of higher numbers
    libc.capget(header, sets)
    for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # of the programs that it executes
        for place in range(3):
            sets[place] &= ~(1 << capability)
    libc.capset(header, sets)
