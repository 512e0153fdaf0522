"""Guards around every test: nothing may leak into the next one."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import shutil
import signal
import subprocess
import threading
import uuid
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from bt_lightning.worker import spawn
from tests.fork_server import ForkServer
from tests.forked_workers import forked_context
from tests.lean import sitecustomize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # gRPC, which no emulator has
os.environ.pop("PYTHONUNBUFFERED", None)  # users have none: what is buffered may fail at the end
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what is in its background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # or no child could be interrupted
settings.register_profile("patient", deadline=None)  # a machine that is busy is no failure
settings.load_profile("patient")
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (str(Path(sitecustomize.__file__).parent), os.environ.get("PYTHONPATH")))
)
spawned_context, spawn._context = spawn._context, forked_context
_ENDING_S = 20
_OURS = ("BT_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_")


@pytest.fixture(autouse=True)
def _clean_environment(_no_leaks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of a platform reaches a test that did not set it."""
    for name in list(os.environ):
        if name.startswith("BT_") and name != "BT_TEST_WORKERS":
            monkeypatch.delenv(name)
    # or the workers of trainers that a test kills would stay; tests of that set it
    monkeypatch.setenv("BT_HOLD_MEMORY_S", "0")


@pytest.fixture(autouse=True)
def _no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """A leaked variable, thread, child process or signal handler is a failure of that test."""
    environ = {name: value for name, value in os.environ.items() if name.startswith(_OURS)}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads = set(threading.enumerate())
    state = random.getstate()
    yield
    random.setstate(state)
    left = [t.name for t in threading.enumerate() if t not in threads and not _is_shared(t)]
    now = {name: value for name, value in os.environ.items() if name.startswith(_OURS)}
    assert now == environ, "the test changed the environment"
    assert {n: signal.getsignal(n) for n in handlers} == handlers, "the test left a signal handler"
    assert not left, f"the test left threads: {left}"
    assert not _workers(), "the test left a worker process"


def _is_shared(thread: threading.Thread) -> bool:
    """Threads of libraries that live as long as the process: event loops, pools, progress bars."""
    shared = ("fsspecIO", "asyncio_", "ThreadPoolExecutor", "pytest_timeout", "tqdm_monitor")
    return thread.name.startswith(shared)


def _workers() -> list[int]:
    import multiprocessing

    if multiprocessing.active_children():
        gc.collect()  # workers of a dataloader end with its iterator, which an error may hold
    for child in multiprocessing.active_children():
        child.join(_ENDING_S)  # one that was told to end may need a while on a busy machine
    return [child.pid or 0 for child in multiprocessing.active_children()]


def pytest_addoption(parser: pytest.Parser) -> None:
    add = parser.addoption
    add("--sample", type=int, default=1, metavar="N", help="run about one test in N")
    add(
        "--sample-matrix",
        type=int,
        default=1,
        metavar="N",
        help="run about one in N of the tests that are marked `matrix`",
    )
    add("--sample-seed", default="", metavar="TEXT", help="which tests are in the samples")


def pytest_report_header(config: pytest.Config) -> str:
    one, many = config.getoption("--sample"), config.getoption("--sample-matrix")
    seed = config.getoption("--sample-seed")
    if one == many == 1:
        return ""
    return f"sample: 1 test in {one}, of matrices 1 in {one * many}, --sample-seed={seed}"


def _sampled(config: pytest.Config, items: list[pytest.Item]) -> set[pytest.Item]:
    """The tests of the sample; of a matrix at least one for each module."""
    seed, one_in = config.getoption("--sample-seed"), config.getoption("--sample")
    draws = {item: zlib.crc32(f"{seed} {item.nodeid}".encode()) for item in items}
    found = {item for item in items if draws[item] % one_in == 0}
    matrices: dict[Path, list[pytest.Item]] = {}
    for item in found:
        if item.get_closest_marker("matrix"):
            matrices.setdefault(item.path, []).append(item)
    for cases in matrices.values():
        first = min(cases, key=draws.__getitem__)
        of_matrix = one_in * config.getoption("--sample-matrix")
        found -= {case for case in cases if draws[case] % of_matrix and case is not first}
    return found


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a sample only its tests run; GPU tests skip where there is no GPU."""
    sampled = _sampled(config, items)
    if others := [item for item in items if item not in sampled]:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item in sampled]
    if not any("gpu" in item.keywords for item in items):
        return
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def spawned_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are started, each with an interpreter of its own, as users start them."""
    monkeypatch.setattr(spawn, "_context", spawned_context)


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """Starts scripts that import torch and Lightning, without the seconds that this takes."""
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def small_disk(_no_leaks: None, tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts file systems of a few megabytes: `small_disk(size_bytes, kind="tmpfs" | "ext4")`."""
    with contextlib.ExitStack() as mounted:
        yield lambda size, kind="tmpfs": _mounted(tmp_path, size, kind, mounted)


def _mounted(tmp_path: Path, size: int, kind: str, mounted: contextlib.ExitStack) -> Path:
    place = tmp_path / f"disk-{uuid.uuid4().hex[:8]}"
    place.mkdir()
    if kind == "tmpfs":
        _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place)
    else:
        image = place.with_suffix(".img")
        with image.open("wb") as file:
            file.truncate(size)
        _run("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image)
        _run("mount", "-o", "loop", image, place)
    mounted.callback(subprocess.run, ["umount", "-l", place], check=True, capture_output=True)
    return place


def _run(*command: object) -> None:
    """Run a command that only root may; where nobody may, the test is skipped."""
    words = [str(word) for word in command]
    if shutil.which(words[0]) is None:
        pytest.skip(f"needs {words[0]}")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs the right to do this: {' '.join(words)}: {done.stderr.strip()}")
