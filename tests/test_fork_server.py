"""A script that is forked cannot tell that it was not started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

FACTS = """
import json, multiprocessing, os, signal, sys, threading

def double(number):
    return 2 * number, __name__, sys.argv

if __name__ == "__main__":
    loaded = {}
    if "torch" in sys.argv:
        import torch
        from lightning.pytorch.utilities import rank_zero_only
        loaded = {"rank": rank_zero_only.rank, "torch threads": torch.get_num_threads()}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        spawned = pool.map(double, [21])
    print(json.dumps({
        "spawned": list(spawned),
        "said": sys.stdin.read(),
        "argv": sys.argv,
        "command": sys.orig_argv,
        "cwd": os.getcwd(),
        "environment": dict(sorted(os.environ.items())),
        "path": sys.path,
        "main": sorted(name for name in vars(sys.modules["__main__"]) if name.startswith("__")),
        "file": globals().get("__file__"),
        "names": [__name__, __package__, getattr(__spec__, "name", None)],
        "loader": getattr(__loader__, "path", __loader__),
        "leads": [os.getpid() == os.getsid(0), os.getpid() == os.getpgid(0)],
        "threads": [thread.name for thread in threading.enumerate() if not thread.daemon],
        "handlers": [str(signal.getsignal(number)) for number in (2, 10, 12, 13, 15, 17)],
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "files": [os.path.exists(f"/proc/self/fd/{file}") for file in range(3)],
        "streams": [(s.line_buffering, s.encoding, s.isatty()) for s in (sys.stdout, sys.stderr)],
        "options": list(sys.warnoptions),
        "flags": list(sys.flags),
        "loaded": loaded,
    }, default=str))
    print("to the other", file=sys.stderr)
"""
ENDS = {
    "end": ("print('over')", 0),
    "exit": ("import sys; sys.exit(3)", 3),
    "exit with words": ("import sys; sys.exit('no more')", 1),
    "error": ("raise ValueError('mine')", 1),
    "at exit": ("import atexit; atexit.register(print, 'left'); print('still'); raise OSError", 1),
    "at once": ("import os; print('lost', end=''); os._exit(7)", 7),
    "thread": ("import threading; threading.Timer(0.2, print, ['outlives']).start()", 0),
    "killed": ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
    "terminated": ("import os, time; os.kill(os.getpid(), 15); time.sleep(9)", -signal.SIGTERM),
    "interrupted": ("import os, time; os.kill(os.getpid(), 2); time.sleep(9)", -signal.SIGINT),
    "syntax": ("print('never'\n", 1),
}


@pytest.fixture
def both(fork_server, tmp_path):
    """What a script leaves that is started, and the same script that is forked."""

    def both(text, *args, said="", how="script", prepare=None, **env):
        script = tmp_path / "script.py"
        script.write_text(text := textwrap.dedent(text))
        command = {"script": [str(script)], "-c": ["-c", text], "-": ["-"], "-m": ["-m", "script"]}
        found = []
        for popen in (subprocess.Popen, fork_server.popen):
            with popen(
                [sys.executable, *command[how], *args],
                preexec_fn=prepare,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=tmp_path,
                env={**os.environ, "PYTHONWARNINGS": "ignore", **env},
                start_new_session=True,
            ) as process:
                out, err = process.communicate(text if how == "-" else said, timeout=100)
                found.append((process.returncode, out, err))
        return found

    return both


@pytest.mark.parametrize("how", ["script", "-c", "-", "-m"])
def test_what_a_script_sees_is_what_one_sees_that_was_started(both, how):
    facts = FACTS
    if how in {"-c", "-"}:  # a child of theirs has no way to the function, or to any
        facts = facts.replace("pool.map(double", "map(abs" if how == "-" else "pool.map(abs")
        facts = facts.replace("spawn", "fork" if how == "-" else "spawn")
    words = ("one", "two words", *["torch"] * (how == "script"))
    started, forked = both(facts, *words, said="heard", how=how, LOCAL_RANK="3", MINE="x")
    assert started[0] == forked[0] == 0, started[2] + forked[2]
    wanted, found = json.loads(started[1]), json.loads(forked[1])
    if how != "script":  # a fork has the variables that torch sets, though it does not import it
        found["environment"] = {n: found["environment"].get(n) for n in wanted["environment"]}
    assert {k: v for k, v in found.items() if v != wanted[k]} == {}
    assert found == wanted
    assert forked[2] == started[2] == "to the other\n"


@pytest.mark.parametrize(("text", "code"), ENDS.values(), ids=ENDS)
def test_it_ends_as_one_that_was_started(both, text, code):
    started, forked = both(text)
    assert started[:2] == (code, started[1])
    assert forked[:2] == started[:2]
    assert forked[2].splitlines()[-1:] == started[2].splitlines()[-1:]


def test_a_function_is_called_before_it(both):
    said = {
        prepare: both("import os; print(os.nice(0))", prepare=prepare) for prepare in (None, nicer)
    }
    for prepare, (started, forked) in said.items():
        assert forked[:2] == started[:2] == (0, f"{os.nice(0) + (3 if prepare else 0)}\n")


def nicer():
    os.nice(3)


def test_it_is_waited_for_and_told_signals_like_any_process(fork_server, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import signal; print('here', flush=True); signal.pause()")
    processes = [
        fork_server.popen(
            [sys.executable, str(script)], stdout=subprocess.PIPE, start_new_session=True
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout.readline() == b"here\n"
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
    processes[1].kill()
    assert processes[1].wait(30) == -signal.SIGKILL
    os.killpg(processes[2].pid, signal.SIGTERM)
    assert processes[2].wait() == -signal.SIGTERM
    assert processes[0].poll() is None
    processes[0].terminate()
    processes[0].communicate(timeout=30)
    assert processes[0].returncode == -signal.SIGTERM
    for process in processes:
        process.stdout.close()


def test_what_the_interpreter_reads_at_its_start_makes_a_start(both, fork_server, tmp_path):
    text = "import sys; print(sys.flags.dont_write_bytecode, sys.dont_write_bytecode)"
    assert both("pass")
    assert [out for _, out, _ in both(text, PYTHONDONTWRITEBYTECODE="1")] == ["1 True\n"] * 2
