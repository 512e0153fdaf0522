"""Starts upload workers by a fork of a process that has their modules loaded, and nothing else.

`forked_context()` is `multiprocessing.get_context("spawn")`, without the imports of each start: the
worker is a child of the process that asks, has its working directory, environment, limits, standard
streams, and shares no other descriptor with it. The workers of scripts are started as
ever, and so are those of tests that use `spawned_workers`.

Run as a program, this is the process that forks: it reads requests from a socket, one JSON object
each, that bring the descriptors along.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import ctypes
import gc
import io
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from multiprocessing import popen_spawn_posix, resource_tracker, spawn, util
from multiprocessing.context import SpawnContext, SpawnProcess, reduction, set_spawning_popen
from pathlib import Path
from types import ModuleType
from typing import Any

_START_S = 60.0
_STANDARD = (0, 1, 2)
_MOST_FILES = 64
_LIMITS = (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE_PARENT = 0x8000
"""The new process is a child of the caller's parent. Source: clone(2)."""


class _Nursery:
    """The process that forks, of this process; it ends with it."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._owner = 0
        self._limits: list[tuple[int, tuple[int, int]]] = []
        self._line: socket.socket | None = None

    def fork(self, files: list[int]) -> int:
        """Have a worker start with these descriptors, the first one of which says what it is."""
        with self._turn:
            if self._line is None or self._owner != os.getpid():
                self._line = self._started()
            request = {
                "files": files,
                "cwd": str(Path.cwd()),
                "environ": dict(os.environ),
                "limits": [limit for limit in _limits() if limit not in self._limits],
            }
            passed = array.array("i", [*_STANDARD, *files])
            self._line.sendmsg(
                [json.dumps(request).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)]
            )
            answer = self._line.recv(64)
        assert answer, "the process that forks workers has ended"
        return int(answer)

    def _started(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            ).returncode = 0  # nobody waits for it: it ends with the line
        atexit.register(ours.close)
        ours.settimeout(_START_S)
        assert ours.recv(64) == b"ready"
        self._owner, self._limits = os.getpid(), _limits()
        return ours


def _limits() -> list[tuple[int, tuple[int, int]]]:
    return [(limit, resource.getrlimit(limit)) for limit in _LIMITS]


_nursery = _Nursery()


class _Popen(popen_spawn_posix.Popen):
    def _launch(self, process_obj: Any) -> None:
        data = io.BytesIO()
        self._fds.append(resource_tracker.getfd())
        set_spawning_popen(self)
        try:
            reduction.dump(spawn.get_preparation_data(process_obj._name), data)
            reduction.dump(process_obj, data)
        finally:
            set_spawning_popen(None)
        self.sentinel, held = os.pipe()
        given, give = os.pipe()
        self.finalizer = util.Finalize(self, util.close_fds, (self.sentinel, give))
        try:
            self.pid = _nursery.fork([given, held, *self._fds])
        finally:
            os.close(given)
            os.close(held)
        with open(give, "wb", closefd=False) as line:
            line.write(data.getbuffer())


class _Process(SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802 - of multiprocessing
        return _Popen(process_obj)


class _Context(SpawnContext):
    Process = _Process


def forked_context() -> SpawnContext:
    """The context in which a worker is started by a fork."""
    return _Context()


def _serve(line: socket.socket) -> dict[str, Any] | None:
    """Fork for each request; returns it in the child, None when nobody asks any more."""
    line.send(b"ready")
    size = socket.CMSG_SPACE(array.array("i").itemsize * _MOST_FILES)
    while True:
        data, passed, _, _ = line.recvmsg(1 << 20, size)
        if not data:
            return None
        request: dict[str, Any] = json.loads(data)
        files = array.array("i")
        files.frombytes(passed[0][2])
        if (pid := _fork_sibling()) == 0:
            line.close()
            _take(list(files), [*_STANDARD, *request["files"]])
            return request
        line.send(b"%d" % pid)
        for file in files:
            os.close(file)


def _fork_sibling() -> int:
    """`os.fork`, but for whose child it makes: that of the process which started this one."""
    python = ctypes.pythonapi
    call = ctypes.PyDLL(None).syscall  # with the interpreter's lock held, as a fork wants it
    call.restype = ctypes.c_long
    python.PyOS_BeforeFork()
    pid: int = call(_CLONE[os.uname().machine], _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        python.PyOS_AfterFork_Child()
    else:
        python.PyOS_AfterFork_Parent()
    assert pid >= 0, "cannot fork"
    return pid


def _take(files: list[int], numbers: list[int]) -> None:
    """Give each descriptor that came the number that it has where it came from."""
    import fcntl

    above = [fcntl.fcntl(file, fcntl.F_DUPFD, 1 + max(files + numbers)) for file in files]
    for file in files:
        os.close(file)
    for file, number in zip(above, numbers, strict=True):
        os.dup2(file, number)
        os.close(file)


def _become(request: dict[str, Any]) -> None:
    """Run the worker as `multiprocessing.spawn.spawn_main` does; its end is that of the process."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environ"])
    for limit, values in request["limits"]:
        resource.setrlimit(limit, values)
    del sys.modules["__main__"].__file__  # or what is started runs it again
    what, _, tracker, *_ = request["files"]
    resource_tracker._resource_tracker._fd = tracker  # type: ignore[attr-defined]
    sys.exit(spawn._main(what, os.dup(what)))  # type: ignore[attr-defined]


def _name_as_imported() -> None:
    """Let a start find this module under the name that pytest gives it, on no path."""
    package = ModuleType("tests")
    package.__path__ = [str(Path(__file__).parent)]
    sys.modules.update({"tests": package, "tests.forked_workers": sys.modules["__main__"]})


def _main() -> None:
    import bt_lightning.worker.worker_process  # noqa: F401 - loaded before the forks

    _name_as_imported()
    gc.collect()
    gc.freeze()
    assert threading.active_count() == 1, "a fork would lose a thread"
    with contextlib.ExitStack() as open_line:
        line = open_line.enter_context(socket.socket(fileno=int(sys.argv[1])))
        request = _serve(line)
    if request is not None:
        _become(request)


if __name__ == "__main__":
    _main()
