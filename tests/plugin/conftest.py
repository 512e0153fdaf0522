"""What the tests of the plugin share: small trainings, and scripts in their own processes."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.util
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bt_lightning.snapshot import copy_and_torn_check
from tests.fork_server import script_environ
from tests.kernels import mount_there

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import ModuleType

    from tests.fork_server import ForkServer

HERE = Path(__file__).parent
LIGHTNING_NOISE = (
    # advice that Lightning gives about a training as small as these are
    "ignore:The '.*dataloader' does not have many workers",
    "ignore:.*torch.utils.data.DataLoader.*num_workers",
    "ignore:The number of training batches",
    "ignore:Using ModelCheckpoint with manual optimization",
    "ignore:You defined a `validation_step` but have no `val_dataloader`",
    "ignore:You are running in `fast_dev_run` mode",
    "ignore:.*Experiment logs directory .* exists and is not empty",
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",
    # of torch, by what Lightning calls
    "ignore:.*torch.amp.GradScaler is enabled",
    "ignore:Please use the new API settings to control TF32",
    "ignore:.*lr_scheduler.step.* before .*optimizer.step",
    "ignore:.*isinstance\\(treespec:FutureWarning",
    "ignore:.*pkg_resources",
    "ignore:'set_vital' is deprecated:UserWarning",  # torchdata
)


@pytest.fixture(autouse=True)
def _one_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """All fits of a test are those of one line of a script, which is edited and started again."""
    from bt_lightning.lightning_plugin import fit_identity_of_trainer

    editions = itertools.count()
    monkeypatch.setattr(fit_identity_of_trainer, "call_site", lambda: "train.py:main:fit")
    monkeypatch.setattr(fit_identity_of_trainer, "program_digest", lambda _: f"{next(editions)}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lightning's own advice is no failure of ours; whole trainings are sampled."""
    for item in items:
        if HERE in item.path.parents:
            for line in LIGHTNING_NOISE:
                item.add_marker(pytest.mark.filterwarnings(line))
            item.add_marker(pytest.mark.matrix)


def module_beside(name: str, folder: Path = HERE) -> ModuleType:
    """The module of that name in a folder, this one's also for scripts of the tests."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def runs() -> ModuleType:
    """The module `plugin_runs`, beside this file."""
    return module_beside("plugin_runs")


@pytest.fixture(scope="session")
def measured(runs: ModuleType) -> ModuleType:
    """The module `metric_runs`, beside this file; it imports `plugin_runs`."""
    return module_beside("metric_runs")


@pytest.fixture(scope="session")
def _imported(runs: ModuleType) -> None:
    """What is imported stays: nobody looks for garbage in it after each test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _quiet(_imported: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No chatter, no seed that outlives its test, no dataloader worker of a failed training."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    yield
    gc.collect()
    gc.freeze()  # what is left is a library's, and would be looked through after each test


@pytest.fixture
def environ(_no_leaks: None) -> Iterator[pytest.MonkeyPatch]:
    """Sets variables, and takes them back before the guard against leaks looks."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@dataclass
class Process:
    """What a script left."""

    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"exit code {self.code}\n--- out\n{self.out}\n--- err\n{self.err[-6000:]}"


class Scripts:
    """Runs Python text in processes of their own, each with a process group of its own."""

    def __init__(self, folder: Path, fork_server: ForkServer) -> None:
        self._folder = folder
        self._fork_server = fork_server
        self._count = 0

    def environ(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        return script_environ(more, (HERE,))

    def popen(self, command: list[str], **options: Any) -> subprocess.Popen[str]:
        """`subprocess.Popen`, without the seconds in which torch and Lightning are imported."""
        return self._fork_server.popen(command, **options)

    def write(self, text: str) -> Path:
        self._count += 1
        path = self._folder / f"script_{self._count}.py"
        path.write_text(textwrap.dedent(text))
        return path

    def run(
        self,
        text: str | Path,
        *args: Any,
        env: Mapping[str, str] | None = None,
        before: tuple[str, ...] = (),
        prepare: Callable[[], object] | None = None,
        stdin: bool = False,
        fresh: bool = False,
        timeout: float = 110,
        code: int | None = 0,
    ) -> Process:
        """Run to the end and check the exit `code`; `before` is a command that runs Python.

        `prepare` is called in the process before the script. With `fresh`, nothing is loaded
        before it: it tests what is imported, and when.
        """
        popen = subprocess.Popen if fresh else self.popen
        path = text if isinstance(text, Path) else self.write(text)
        name = "-" if stdin else str(path)
        with (
            path.open() as given,
            popen(
                [*before, sys.executable, name, *map(str, args)],
                stdin=given if stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=self._folder,
                env=self.environ(env),
                start_new_session=True,
                preexec_fn=prepare,
            ) as process,
        ):
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                out, err = self._stacks(process)
                pytest.fail(f"hung for {timeout} s\n{out}\n{err[-12000:]}")
        found = Process(process.returncode, out, err)
        assert code is None or found.code == code, str(found)
        return found

    def ranks(
        self,
        text: str | Path,
        *args: Any,
        envs: list[dict[str, str]],
        disks: tuple[Path, list[Path]] | None = None,
        timeout: float = 110,
    ) -> list[Process]:
        """Run one process for each of `envs` side by side, as a cluster starts ranks.

        Lightning's `LightningEnvironment` takes them for nodes of one process each, unless their
        variables say something else. With `disks`, a place and a folder for each rank, that place
        is another disk on each of them.
        """
        prepares: list[Callable[[], object] | None] = [None for _ in envs]
        if disks is not None:
            there, folders = disks
            prepares = [functools.partial(mount_there, str(f), str(there)) for f in folders]
            try:
                subprocess.run(["true"], preexec_fn=prepares[0], check=True)
            except subprocess.SubprocessError:
                pytest.skip("needs the right to mount")
        path = text if isinstance(text, Path) else self.write(text)
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "RANKS": str(len(envs)),
            "LOCAL_RANK": "0",
        }
        with contextlib.ExitStack() as files:
            started = [
                self.popen(
                    [sys.executable, str(path), *map(str, args)],
                    preexec_fn=prepares[rank],
                    stdin=subprocess.DEVNULL,
                    stdout=files.enter_context(self._said(path, rank, "out").open("w")),
                    stderr=files.enter_context(self._said(path, rank, "err").open("w")),
                    cwd=self._folder,
                    env=self.environ({**shared, "NODE_RANK": str(rank), **env}),
                    start_new_session=True,
                )
                for rank, env in enumerate(envs)
            ]
        until = time.monotonic() + timeout
        hung = []
        for rank, process in enumerate(started):
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                hung.append(rank)
        for rank in hung:
            self._stacks(started[rank])
        done = [
            Process(
                process.returncode,
                self._said(path, rank, "out").read_text(),
                self._said(path, rank, "err").read_text(),
            )
            for rank, process in enumerate(started)
        ]
        assert not hung, f"ranks {hung} hung for {timeout} s\n" + "\n".join(map(str, done))
        return done

    def _said(self, path: Path, rank: int, stream: str) -> Path:
        return self._folder / f"{path.stem}-{rank}.{stream}"

    @staticmethod
    def _stacks(process: subprocess.Popen[str]) -> tuple[str, str]:
        """End a script that hangs, and all of its group; each says where its threads stand."""
        for signum, patience in ((signal.SIGABRT, 10), (signal.SIGKILL, None)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signum)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.communicate(timeout=patience)
        raise AssertionError


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def make_scripts(fork_server: ForkServer) -> Callable[[Path], Scripts]:
    """For fixtures that run a script for several tests."""
    return lambda folder: Scripts(folder, fork_server)


@pytest.fixture
def scripts(make_scripts: Callable[[Path], Scripts], tmp_path: Path) -> Scripts:
    """Runs Python text as scripts."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    return make_scripts(folder)


@pytest.fixture(scope="session")
def names() -> Any:
    """The committed checkpoints under a directory, by their names."""

    def names(root: Path | str) -> set[str]:
        from bt_lightning.localdir.list_and_verify_checkpoints import list_committed

        root = Path(root).resolve()
        return {str(found.path.relative_to(root)) for found in list_committed(root)[0]}

    return names


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Copies beside training begin only when somebody waits for them, or calls this."""
    finish, wait = copy_and_torn_check.Capture.finish, copy_and_torn_check.Capture.guard
    made: list[Any] = []

    def held(self: Any) -> None:
        assert self.gate.wait(60)
        try:
            finish(self)
        finally:
            self.copied.set()

    def guard(self: Any) -> None:
        self.gate.set()
        wait(self)

    original = copy_and_torn_check.Capture.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        self.gate, self.copied = threading.Event(), threading.Event()
        original(self, *args, **kwargs)
        made.append(self)

    def copy_now() -> None:
        while made:
            pending = made.pop()
            pending.gate.set()
            assert pending.copied.wait(60)

    monkeypatch.setattr(copy_and_torn_check.Capture, "__init__", init)
    monkeypatch.setattr(copy_and_torn_check.Capture, "finish", held)
    monkeypatch.setattr(copy_and_torn_check.Capture, "guard", guard)
    return copy_now
