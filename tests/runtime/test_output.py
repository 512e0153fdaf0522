"""What a command prints passes through unchanged, and is in the store whoever is killed."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time

import psutil

from bt_lightning.log_kinds import OUTPUT, log_folder
from bt_lightning.path_layout import job_prefix
from bt_lightning.runtime import output_capture
from bt_lightning.runtime.output_capture import OutputCapture
from tests.runtime.conftest import LIMIT_S, RUN


def arguments(runner, *words):
    store = (runner.path / "store").as_uri()
    return ("--store", store, "--project", "p", "--job-id", "j", *words)


def printed(runner):
    """The lines in the store, as (attempt, stream, text)."""
    folder = runner.path / "store" / log_folder(job_prefix("p", "j", 0), OUTPUT)
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [(line["attempt"], line["stream"], line["text"]) for line in lines]


def relays(process):
    children = psutil.Process(process.pid).children()
    return [child for child in children if "output_relay" in " ".join(child.cmdline())]


def test_output_is_the_commands_own_and_its_lines_are_in_the_store(runner):
    line = r"printf 'one\ntwo'; echo bad >&2; exit 3"
    out, err = runner(*arguments(runner, "--", "sh", "-c", line), code=3)
    assert out == "one\ntwo"
    assert "bad\nbt-lightning: job j: FAILED" in err  # in this order
    assert sorted(printed(runner)) == [
        (0, "stderr", "bad"),
        (0, "stdout", "one"),
        (0, "stdout", "two"),
    ]


def test_lines_belong_to_their_attempt_and_keep_their_order(runner):
    line = 'for n in $(seq 300); do echo $BT_RETRY_COUNT $n; done; [ "$BT_RETRY_COUNT" -ge 1 ]'
    out, _ = runner(*arguments(runner, "--retries", "1", "--", "sh", "-c", line))
    assert [f"{attempt} {text.split()[1]}" for attempt, _, text in printed(runner)] == (
        out.splitlines()
    )


def test_secrets_are_hidden_in_the_log_and_not_on_the_screen(runner):
    secrets = {"AWS_SECRET_ACCESS_KEY": "s3cret/with+signs", "MY_TOKEN": "tok-en-42"}
    line = "echo a $AWS_SECRET_ACCESS_KEY b $MY_TOKEN c; echo ftp://u:pa55word@host/x >&2"
    out, _ = runner(*arguments(runner, "--", "sh", "-c", line), env=secrets)
    assert out == "a s3cret/with+signs b tok-en-42 c\n"
    assert [text for _, _, text in sorted(printed(runner))] == [
        "ftp://***@host/x",
        "a *** b *** c",
    ]
    everything = b"".join(
        path.read_bytes()
        for folder in ("store", "bt_checkpoints")
        for path in (runner.path / folder).rglob("*")
        if path.is_file()
    )
    assert not any(one.encode() in everything for one in (*secrets.values(), "pa55word"))


def test_output_can_be_kept_back(runner):
    out, _ = runner(*arguments(runner, "--no-logs", "--", "echo", "x"))
    assert out == "x\n"
    assert printed(runner) == []


def test_a_command_outlives_its_runner_and_what_it_prints_is_logged(runner, gate):
    """A broken pipe would have killed it."""
    line = f"{gate.arrive}; {gate.wait}; echo still here; touch survived"
    process = runner.start(*arguments(runner, "--", "sh", "-c", line))
    gate.reached()
    process.kill()
    process.wait()
    gate.open()
    out, _ = process.communicate(timeout=LIMIT_S)  # to the end of the relay, which has the pipe
    assert out == "still here\n"
    assert (runner.path / "survived").exists()
    runner(*arguments(runner, "--", "true"))  # sends what lies on the disk
    assert (0, "stdout", "still here") in printed(runner)


def test_a_relay_that_is_killed_is_started_again(runner, gate):
    line = f"echo before; {gate.arrive}; {gate.wait}; seq 20000; echo after"
    process = runner.start(*arguments(runner, "--", "sh", "-c", line))
    gate.reached()
    (relay,) = relays(process)
    relay.kill()
    gate.open()
    out, _ = runner.end(process, 0)
    assert out.splitlines() == ["before", *map(str, range(1, 20001)), "after"]
    assert printed(runner)[-1] == (0, "stdout", "after")


def test_where_no_relay_can_live_the_command_prints_all_the_same(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(output_capture, "_RELAY", "no_such_module")
    said = []
    capture = OutputCapture(tmp_path, (), said.append)
    out, _ = capture.streams
    with subprocess.Popen(["sh", "-c", "seq 30000"], stdout=out) as process:
        until = time.monotonic() + LIMIT_S
        while process.poll() is None and time.monotonic() < until:
            capture.tick()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        assert process.returncode == 0
    capture.close()
    assert capfd.readouterr().out.splitlines()[-1] == "30000"
    assert ["not logged" in text for text in said] == [True]


def test_a_reader_who_leaves_ends_no_training(runner):
    """As behind `| head`."""
    command = [*RUN, *arguments(runner, "--", "sh", "-c", "seq 100000; touch survived")]
    with subprocess.Popen(
        command, cwd=runner.path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(LIMIT_S) == 0
    assert (runner.path / "survived").exists()
    assert printed(runner)[-1] == (0, "stdout", "100000")


def test_where_the_runner_has_a_terminal_the_command_has_one_of_the_same_size(runner):
    ours, theirs = pty.openpty()
    subprocess.run(["stty", "cols", "77", "rows", "33"], stdin=theirs, check=True)
    line = "[ -t 1 ] && [ -t 2 ] && stty size <&1; printf 'a\\tb\\n'"
    command = [*RUN, *arguments(runner, "--", "sh", "-c", line)]
    with subprocess.Popen(
        command, cwd=runner.path, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        assert process.wait(LIMIT_S) == 0
    shown = b""
    try:
        while data := os.read(ours, 65536):
            shown += data
    except OSError:  # EIO: nobody has it open any more
        os.close(ours)
    assert b"33 77\r\na\tb\r\n" in shown
    assert printed(runner) == [(0, "stdout", "33 77"), (0, "stdout", "a\tb")]


def test_python_prints_at_once_so_that_a_killed_trainings_last_words_are_there(runner):
    code = "import os; print('last words'); os.kill(os.getpid(), 9)"
    runner(*arguments(runner, "--", sys.executable, "-c", code), code=128 + signal.SIGKILL)
    assert printed(runner) == [(0, "stdout", "last words")]


def test_what_was_printed_before_a_lost_disk_is_in_the_store(runner):
    runner(*arguments(runner, "--", "sh", "-c", "echo first; exit 1"), code=1)
    shutil.rmtree(runner.path / "bt_checkpoints")
    runner(*arguments(runner, "--", "echo", "second"))
    assert printed(runner) == [(0, "stdout", "first"), (1, "stdout", "second")]
