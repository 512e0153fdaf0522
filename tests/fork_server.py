"""Starts Python scripts by a fork of a process that has torch and Lightning loaded.

`ForkServer.popen` is `subprocess.Popen` for a script: with the same arguments, and a process that
is as one that was started: session, process group, arguments, environment, working directory,
standard streams, `__main__`, the end of the interpreter and its status. What an interpreter reads
while it starts cannot be changed after it, but for `PYTHONPATH`: a command whose environment says
something else there, and whatever is not `python` with a script, `-`, `-c CODE` or `-m MODULE`, is
started as ever. A `preexec_fn` is a function of a module, or a partial of one.

Run as a program, this is the server: it reads requests from a socket, one JSON object each, that
bring three file descriptors along.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import ctypes
import gc
import importlib
import itertools
import json
import os
import pickle
import runpy
import select
import socket
import subprocess
import sys
import threading
import types
import weakref
from importlib.machinery import BuiltinImporter, SourceFileLoader
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bt_lightning

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

READ_AT_START = ("PYTHON", "LD_", "LC_", "LANG", "OMP_", "MKL_", "KMP_", "OPENBLAS_", "TORCH_")
"""Prefixes of variables that the interpreter and its libraries read when they are loaded."""
_IN_A_FIT = ("omegaconf", "torch.distributed.checkpoint")
"""What Lightning imports in the first fit of a process, where it is installed."""
_ONE_THREAD = ("JE_ARROW_MALLOC_CONF", "background_thread:false")
"""For the memory of pyarrow, which `datasets` imports."""
_MAY_DIFFER = "PYTHONPATH"
_OURS = "bt_lightning"
_HOME = Path(bt_lightning.__file__).parents[1]
_LEAN = Path(__file__).parent / "lean"
_START_S = 120.0
_STANDARD = (0, 1, 2)


class ForkServer:
    """The process that forks; it is started with the first script, and ends with `close`.

    Args:
        modules: what its scripts import beside torch and Lightning.
    """

    def __init__(self, *modules: str) -> None:
        self._modules = modules
        self._line: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._read_at_start: dict[str, str] = {}
        self._turn = threading.Lock()

    def popen(
        self, command: list[str], *, group: int | None = None, **options: Any
    ) -> subprocess.Popen[Any]:
        """Start a script, as `subprocess.Popen(command, **options)` does.

        `group`: the process group to be in, of the server's session; 0 for one of its own.
        """
        env = dict(os.environ if options.get("env") is None else options["env"])
        if self._line is None:
            self._start(env)
        if _read_at_start(env) == self._read_at_start and _is_script(command):
            prepare = options.pop("preexec_fn", None)
            return _Forked(self, command, group, prepare, **{**options, "env": env})
        assert not group, "only a script that is forked can join a group"
        if group == 0:
            options["start_new_session"] = True
        return subprocess.Popen(command, **options)

    def ask(self, request: dict[str, Any], files: tuple[int, ...] = ()) -> int:
        """The answer of the server: a process id, or the status with which one ended."""
        assert self._line is not None
        with self._turn:
            data = json.dumps(request).encode()
            passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
            self._line.sendmsg([data], passed if files else [])
            answer = self._line.recv(64)
        assert answer, "the server of forks has ended"
        return int(answer)

    def _start(self, env: dict[str, str]) -> None:
        self._read_at_start = _read_at_start(env)
        kept = {name: value for name, value in os.environ.items() if not _is_read(name)}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), *self._modules],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**kept, **self._read_at_start, _MAY_DIFFER: env.get(_MAY_DIFFER, "")},
                start_new_session=True,
            )
        self._line = ours
        ours.settimeout(_START_S)
        assert ours.recv(64) == b"ready"

    def close(self) -> None:
        """End the server; scripts that run still go on."""
        if self._line is not None and self._process is not None:
            self._line.close()
            self._process.wait(_START_S)
            self._line = self._process = None


def script_environ(
    more: Mapping[str, str] | None = None, places: tuple[Path, ...] = ()
) -> dict[str, str]:
    """The variables of a script of a test; it imports from `places` as well."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PL_")}
    return {
        "PYTHONFAULTHANDLER": "1",
        **kept,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(map(str, (_LEAN, _HOME, *places)))),
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
        **(more or {}),
    }


def _is_script(command: list[str]) -> bool:
    how = command[1]
    return command[0] == sys.executable and (how in {"-", "-c", "-m"} or how.endswith(".py"))


def _is_read(name: str) -> bool:
    return name.startswith(READ_AT_START) and name != _MAY_DIFFER


def _read_at_start(env: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if _is_read(name)}


class _Forked(subprocess.Popen):  # type: ignore[type-arg]
    """A script that is a child of the server, which alone can ask the kernel how it ended."""

    def __init__(
        self,
        server: ForkServer,
        command: list[str],
        group: int | None,
        prepare: Callable[[], object] | None,
        **options: Any,
    ) -> None:
        self._server, self._group, self._prepare = server, group, prepare
        self._handle = -1
        super().__init__(command, **options)

    def _execute_child(self, command: list[str], *how: Any) -> None:
        _, preexec, _, passed, cwd, env, _, _, shell, *more = how
        assert not any((preexec, passed, shell)), "a script that is forked has no such option"
        ends, session = more[:6], bool(more[11])
        assert session or self._group is not None, "or it would be of the server's own group"
        stdin, _, _, stdout, _, stderr = ends
        request = {
            "command": list(map(str, command)),
            "cwd": str(cwd or Path.cwd()),
            "env": env,
            "group": None if session else self._group,
            "prepare": pickle.dumps(self._prepare).hex(),
        }
        given = zip(_STANDARD, (stdin, stdout, stderr), strict=True)
        files = tuple(mine if file == -1 else file for mine, file in given)
        try:
            self.pid = self._server.ask(request, files)
        finally:
            self._close_pipe_fds(*ends)
        self._handle = os.pidfd_open(self.pid)
        self._child_created = True

    def _try_wait(self, flags: int) -> tuple[int, int]:
        patience = 0 if flags & os.WNOHANG else None
        if not select.select([self._handle], [], [], patience)[0]:
            return 0, 0
        status = self._server.ask({"ended": self.pid})
        os.close(self._handle)
        return self.pid, status

    def _internal_poll(self, _deadstate: int | None = None, **_: Any) -> int | None:
        if self.returncode is None:
            pid, status = self._try_wait(os.WNOHANG)
            if pid == self.pid:
                self._handle_exitstatus(status)
        return self.returncode


def _load(modules: list[str]) -> dict[str, str]:
    """Import what scripts import, and run none of it: threads do not survive a fork.

    Returns the variables that the imports set.
    """
    before, there, theirs = dict(os.environ), set(sys.modules), set[str]()
    atexit.register(_leave_loaded, theirs)
    import lightning.pytorch.callbacks
    import lightning.pytorch.strategies
    import torch
    import torchdata.stateful_dataloader

    from bt_lightning import BTCheckpointIO, BTLightning, BTModelCheckpoint

    for name in _IN_A_FIT:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if modules:
        os.environ.setdefault(*_ONE_THREAD)
    for name in modules:
        importlib.import_module(name)
    if modules:
        os.environ.setdefault(*_ONE_THREAD)
    for name in modules:
        importlib.import_module(name)
    for ending in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        ending.atexit = False  # of torch's operators, one by one
    theirs.update(name for name in set(sys.modules) - there if name.partition(".")[0] != _OURS)
    gc.collect()
    gc.freeze()
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a fork would lose a thread"
    del lightning, torch, torchdata, BTCheckpointIO, BTLightning, BTModelCheckpoint
    return {name: value for name, value in os.environ.items() if before.get(name) != value}


def _leave_loaded(loaded: set[str]) -> None:
    """Keep the interpreter from taking apart what the server loaded, at the end of each script.

    That takes longer than most scripts. It runs when all is done that a script left for its end;
    what the script made, and our modules, are taken apart as ever, but no static object of torch.
    """
    for name in loaded.intersection(sys.modules):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(sys.modules.pop(name)))
    libc = ctypes.CDLL(None)
    libc.fflush(None)
    libc.on_exit(libc._exit, None)  # instead of the destructors of torch's own registry


def _serve(line: socket.socket) -> dict[str, Any] | None:
    """Fork for each request; returns it in the child, None when nobody asks any more."""
    line.send(b"ready")
    while True:
        data, passed, _, _ = line.recvmsg(1 << 20, socket.CMSG_SPACE(3 * 4))
        if not data:
            return None
        request: dict[str, Any] = json.loads(data)
        if "ended" in request:
            line.send(b"%d" % os.waitpid(request["ended"], 0)[1])
            continue
        files = array.array("i")
        files.frombytes(passed[0][2])
        if os.fork() == 0:
            _take(files, request["group"])
            line.send(b"%d" % os.getpid())
            return request
        for file in files:
            os.close(file)


def _take(files: array.array[int], group: int | None) -> None:
    """Take the files that came with the request for the standard streams, and leave the server."""
    for standard, file in zip(_STANDARD, files, strict=True):
        os.dup2(file, standard)
    for file in files:
        os.close(file)
    if group is None:
        os.setsid()
    else:
        os.setpgid(0, group)


def _become(request: dict[str, Any], loaded: dict[str, str]) -> None:
    """Run the script as the interpreter would, in this process; its end is that of the process."""
    import multiprocessing.process
    import random

    import numpy as np
    import torch
    from lightning.fabric.utilities import rank_zero

    os.chdir(request["cwd"])
    _prepare(bytes.fromhex(request["prepare"]))
    _open_streams()
    _, how, *more = request["command"]
    sys.argv[:] = [how, *more[how in {"-c", "-m"} :]]
    sys.orig_argv[:] = request["command"]
    own = _places(os.environ)
    os.environ.clear()
    os.environ.update({**loaded, **request["env"]})
    aside = {*own, str(_LEAN), str(_HOME), str(Path(__file__).parent)}  # of the server itself
    rest = itertools.dropwhile(aside.__contains__, sys.path)
    # each once, as the `site` module leaves them
    sys.path[:] = [_beside(how), *dict.fromkeys([*_places(os.environ), *rest])]
    random.seed()
    torch.default_generator.seed()
    np.random.seed()  # noqa: NPY002 - the global generator
    multiprocessing.process.ORIGINAL_DIR = request["cwd"]
    multiprocessing.process.current_process().authkey = os.urandom(32)
    rank_zero.rank_zero_only.rank = rank_zero._get_rank() or 0
    _run(how, more)


def _prepare(pickled: bytes) -> None:
    """Call what a start calls before its program; its module is found from here."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    prepare = pickle.loads(pickled)
    del sys.path[0]
    if prepare is not None:
        prepare()


def _beside(how: str) -> str:
    """Where Python imports from first."""
    if how == "-m":
        return str(Path.cwd())
    is_script = how not in {"-", "-c"}
    return os.path.dirname(os.path.realpath(how)) if is_script else ""  # noqa: PTH120 - as Python


def _open_streams() -> None:
    """Open the standard streams anew: those that were opened know of the server's files only."""
    kinds = {
        "stdin": ("r", "strict"),
        "stdout": ("w", "strict"),
        "stderr": ("w", "backslashreplace"),
    }
    for number, (name, (mode, errors)) in enumerate(kinds.items()):
        stream = open(number, mode, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
        if mode == "w":
            lines = name == "stderr" or stream.isatty()
            unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
            stream.reconfigure(line_buffering=lines, write_through=unbuffered)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _places(environ: Mapping[str, str]) -> list[str]:
    return [place for place in environ.get(_MAY_DIFFER, "").split(os.pathsep) if place]


def _run(how: str, more: list[str]) -> None:
    main = types.ModuleType("__main__")
    main.__annotations__ = {}
    main.__builtins__ = __builtins__  # type: ignore[attr-defined]
    main.__loader__ = BuiltinImporter
    sys.modules["__main__"] = main
    if how == "-m":
        runpy._run_module_as_main(more[0])  # type: ignore[attr-defined]
        return
    if how == "-c":
        name, text = "<string>", more[0].encode()
    elif how == "-":
        name, text = "<stdin>", sys.stdin.buffer.read()
    else:
        name, text = how, Path(how).read_bytes()
        main.__loader__ = SourceFileLoader("__main__", how)
    if how != "-c":
        main.__file__, main.__cached__ = name, None
    exec(compile(text, name, "exec", dont_inherit=True), main.__dict__)


def _main() -> None:
    loaded = _load(sys.argv[2:])
    with contextlib.ExitStack() as open_line:
        line = open_line.enter_context(socket.socket(fileno=int(sys.argv[1])))
        request = _serve(line)
    if request is None:
        os._exit(0)  # what was loaded has nothing to end
    _become(request, loaded)


if __name__ == "__main__":
    _main()
