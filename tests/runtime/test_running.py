"""`bt-lightning run` around commands of every kind: codes, signals, attempts, who else runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bt_lightning.localdir.commit import commit
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import job_prefix


def test_the_commands_output_and_exit_code_are_its_own(runner):
    out, err = runner("--job-id", "j", "--", "sh", "-c", "echo out; echo err >&2; exit 7", code=7)
    assert out == "out\n"
    assert "\nerr\n" in f"\n{err}"
    assert "FAILED" in err
    record = runner.record()
    assert (record["status"], record["checkpoint_sync_status"]) == ("FAILED", None)
    assert [one["exit_code"] for one in record["attempts"]] == [7]


def test_a_runner_with_sigchld_ignored_sees_how_its_command_ended(runner):
    """As of `trap '' CHLD`: the kernel forgets who ends, and every failure looked like a 0."""
    look = "grep -q 'SigIgn:.*[1357]....$' /proc/self/status"  # bit 16, of signal 17
    for line, code in ((look, 1), ("exit 7", 7), ("kill -9 $$", 137)):
        started = runner.start(
            "--job-id",
            "j",
            "--",
            "sh",
            "-c",
            line,
            preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
        )
        runner.end(started, code)
        assert runner.record()["status"] == "FAILED"


def test_a_job_without_a_command_or_program_says_so(runner):
    assert "nothing to run" in runner(code=2)[1]
    runner("--", "./there-is-none", code=127)
    (runner.path / "plain").write_text("x")
    runner("--", "./plain", code=126)


def test_the_command_sees_the_variables_and_a_scratch_that_goes(runner):
    line = "test -d $BT_SCRATCH_DIR && echo $BT_SCRATCH_DIR $BT_TRAINING_JOB_ID $BT_LIGHTNING"
    scratch, job, on = runner("--", "sh", "-c", line)[0].split()
    assert not Path(scratch).exists()
    assert (len(job), on) == (7, "1")


def test_a_scratch_that_a_killed_run_left_goes_with_the_next_one(runner, gate):
    """Not while its command still uses it; and never that of another job."""
    base = runner.path / "scratch"
    other = base / "bt-scratch-other"
    other.mkdir(parents=True)
    env = {"BT_SCRATCH_DIR": str(base)}
    line = f"{gate.arrive}; {gate.wait}; test -d $BT_SCRATCH_DIR && touch survived"
    first = runner.start("--job-id", "j", "--", "sh", "-c", line, env=env)
    gate.reached()
    first.kill()
    first.wait()
    runner("--job-id", "j", "--", "true", code=31, env=env)
    gate.open()
    first.communicate()  # its end is the end of the pipe
    assert (runner.path / "survived").exists()
    assert len(list(base.iterdir())) == 2
    runner("--job-id", "j", "--", "true", env=env)
    assert list(base.iterdir()) == [other]


def test_a_failed_command_is_started_again_and_counts(runner):
    line = 'echo $BT_RETRY_COUNT; [ "$BT_RETRY_COUNT" -ge 2 ]'
    out, err = runner("--job-id", "j", "--retries", "2", "--", "sh", "-c", line)
    assert out.split() == ["0", "1", "2"]
    assert "attempt 1 begins" in err
    record = runner.record()
    assert record["status"] == "COMPLETED"
    assert [one["outcome"] for one in record["attempts"]] == ["failed", "failed", "done"]
    again = runner("--job-id", "j", "--", "sh", "-c", "echo $BT_RETRY_COUNT")[0]
    assert again == "3\n"  # a later run of the job does not begin anew
    assert runner.record()["created_at"] == record["created_at"]


def test_retries_end(runner):
    out, _ = runner("--retries", "1", "--", "sh", "-c", "echo x; exit 3", code=3)
    assert out == "x\nx\n"


def test_a_preemption_is_no_failure(runner):
    line = 'echo $BT_RETRY_COUNT; [ "$BT_RETRY_COUNT" -ge 1 ] || kill -TERM $$'
    assert runner("--", "sh", "-c", line)[0] == "0\n1\n"
    coded = '[ "$BT_RETRY_COUNT" -ge 1 ] || exit 75'
    runner("--preemption-code", "75", "--", "sh", "-c", coded)


def test_a_training_that_says_it_was_preempted_is_started_again_although_it_ended_with_0(runner):
    """Lightning 2.6 ends with 0 after SIGTERM."""
    event = json.dumps({"event": "preempted", "at": 1})  # its clock was set back
    line = (
        'mkdir -p $BT_CHECKPOINT_DIR/.bt_lightning; if [ "$BT_RETRY_COUNT" -ge 1 ]; then '
        "rm -r $BT_CHECKPOINT_DIR/.bt_lightning; "  # the runner may write its record meanwhile
        f"else echo '{event}' >> $BT_CHECKPOINT_DIR/.bt_lightning/events.jsonl; fi; echo x"
    )
    assert runner("--", "sh", "-c", line)[0] == "x\nx\n"


SCRIPT = """#!/bin/sh
python3 -c '
import os, signal, sys
def save(*_):
    print("told", flush=True)
    os.write(1, b"saved\\n")
    sys.exit(0)
signal.signal({number}, save)
open("{gate}", "w").write("x\\n")
signal.pause()
'
echo never
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_training_below_a_script_and_its_end_is_waited_for(
    runner, gate, number
):
    """The script dies of the signal at once; its training is saving still."""
    script = runner.path / "run.sh"
    script.write_text(SCRIPT.format(number=int(number), gate=gate.here))
    script.chmod(0o755)
    process = runner.start("--job-id", "j", "--retries", "5", "--", "./run.sh")
    gate.reached()
    process.send_signal(number)
    out, _ = runner.end(process, 128 + number)
    assert out == "told\nsaved\n"
    record = runner.record()
    assert record["status"] == "STOPPED"
    assert [one["outcome"] for one in record["attempts"]] == ["stopped"]


def test_other_signals_are_passed_on_and_end_nothing(runner, gate):
    line = f"trap 'echo usr1; exit 3' USR1; {gate.arrive}; while :; do sleep 0.05; done"
    process = runner.start("--job-id", "j", "--", "sh", "-c", line)
    gate.reached()
    process.send_signal(signal.SIGUSR1)
    assert runner.end(process, 3)[0] == "usr1\n"
    assert runner.record()["status"] == "FAILED"


def test_who_does_not_end_is_killed_at_the_end_of_the_grace(runner, gate):
    line = f"trap '' TERM; {gate.arrive}; while :; do sleep 0.05; done"
    process = runner.start("--grace", "0.5", "--job-id", "j", "--", "sh", "-c", line)
    gate.reached()
    process.send_signal(signal.SIGTERM)
    runner.end(process, 137)
    assert runner.record()["status"] == "STOPPED"


def test_ctrl_c_again_and_again_means_now(runner, gate):
    line = f"trap '' INT; {gate.arrive}; while :; do sleep 0.05; done"
    process = runner.start("--", "sh", "-c", line)
    gate.reached()
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        signal.sigtimedwait([], 0.05)  # signals of one kind that come at once are one
    runner.end(process, 137)


def test_what_a_command_leaves_in_the_background_ends_with_it(runner):
    out, _ = runner("--", "sh", "-c", "sleep 1000 & echo $!")
    assert not psutil.pid_exists(int(out))


def test_a_signal_between_two_attempts_ends_the_job(runner, gate):
    process = runner.start(
        *("--job-id", "j", "--retries", "99", "--", "sh", "-c"),
        f'[ "$BT_RETRY_COUNT" -lt 2 ] || {gate.arrive}; exit 1',
    )
    gate.reached()  # from here on the pause is 4 s
    process.send_signal(signal.SIGTERM)
    _, err = runner.end(process, process.wait(60))
    assert process.returncode in {1, 143}
    assert runner.record()["status"] == "STOPPED", err


def test_a_second_run_of_a_job_is_refused(runner, gate):
    first = runner.start("--job-id", "j", "--", "sh", "-c", f"{gate.arrive}; {gate.wait}")
    gate.reached()
    _, err = runner("--job-id", "j", "--", "true", code=31)
    assert f"runner process {first.pid}" in err
    gate.open()
    runner.end(first, 0)
    runner("--job-id", "j", "--", "true")


def test_training_that_outlives_its_runner_keeps_a_second_run_away(runner, gate):
    first = runner.start("--job-id", "j", "--", "sh", "-c", f"{gate.arrive}; {gate.wait}; exit")
    gate.reached()
    first.kill()
    first.wait()
    _, err = runner("--job-id", "j", "--", "true", code=31)
    assert "every process that it started" in err
    gate.open()
    first.communicate()  # its end is the end of the pipe
    for _ in range(50):
        done = runner.start("--job-id", "j", "--", "true")
        done.communicate()
        if done.returncode == 0:
            break
    assert done.returncode == 0


def test_another_machine_is_refused_by_the_store(runner, gate, tmp_path):
    """Two directories stand for two machines; the holder lives, so its lease is not waited for."""
    store = tmp_path / "store"
    words = ("--store", store, "--job-id", "j")
    first = runner.start(*words, "--dir", "one", "--", "sh", "-c", f"{gate.arrive}; {gate.wait}")
    gate.reached()
    lease = next((store / job_prefix("default", "j", 0)).rglob(".bt_lightning-run/**/0*"))
    second = runner.start(*words, "--dir", "two", "--", "true")
    while "Waiting" not in second.stderr.readline():
        pass
    said = json.loads(lease.read_bytes())
    lease.write_bytes(json.dumps({**said, "beat": said["beat"] + 1}).encode())  # shows life
    runner.end(second, 31)
    gate.open()
    runner.end(first, 0)
    runner(*words, "--dir", "two", "--", "true")


def test_the_record_of_a_job_lies_in_the_store(runner, tmp_path):
    runner("--store", tmp_path / "store", "--project", "a/b", "--job-id", "j", "--", "true")
    said = (tmp_path / "store" / job_prefix("a/b", "j", 0) / ".bt_lightning-job").read_bytes()
    record = json.loads(said)
    assert (record["status"], record["checkpoint_sync_status"]) == ("COMPLETED", "COMPLETED")
    assert record["host"] == os.uname().nodename


def test_a_store_that_cannot_be_is_said_before_anything_runs(runner):
    _, err = runner("--store", "nope://x", "--", "sh", "-c", "echo ran", code=2)
    assert "nope" in err


def test_the_runner_never_imports_torch(runner):
    code = (
        "import sys; sys.argv[1:] = ['run', '--store', './store', '--', 'true']\n"
        "from bt_lightning.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "assert not {'torch', 'lightning', 'numpy'} & set(sys.modules)\n"
    )
    words = [sys.executable, "-c", code]
    subprocess.run(words, cwd=runner.path, check=True, capture_output=True, timeout=60)


def test_a_job_that_could_not_load_does_not_look_as_if_it_were_sending(runner):
    """Nothing of it ran: what was in the store is there still, and all of it."""
    place = ("--store", (runner.path / "store").as_uri(), "--project", "p", "--job-id", "j")
    load = ("--load", "nobody/checkpoint-1")
    runner(*place, *load, "--", "true", code=10)
    record = runner.record()
    assert (record["status"], record["checkpoint_sync_status"]) == ("FAILED", "COMPLETED")
    runner(*place, "--", "true")
    done = runner.record()
    assert (done["status"], done["checkpoint_sync_status"]) == ("COMPLETED", "COMPLETED")
    runner(*place, *load, "--", "true", code=10)
    record = runner.record()
    assert (record["status"], record["checkpoint_sync_status"]) == ("FAILED", "COMPLETED")
    assert len(record["attempts"]) == 1


WAIT_FOR_PAGES = """
from bt_lightning.store.transfer.direct_reads import is_cached
with open("ck/checkpoint-1/model.safetensors", "rb+") as file:
    while not is_cached(file.fileno(), 0, 4 << 20):
        pass
"""


def test_the_newest_checkpoint_is_read_while_the_command_starts(runner):
    """The command ends when the page cache has it."""
    root = runner.path / "ck"
    root.mkdir()
    content = {"model.safetensors": lambda: [b"x" * (4 << 20)]}
    commit(root / "checkpoint-1", root, content, manifest_of_step_1)
    with (root / "checkpoint-1" / "model.safetensors").open("rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    runner("--dir", root, "--job-id", "j", "--", sys.executable, "-c", WAIT_FOR_PAGES)


def manifest_of_step_1(files):
    return Manifest(
        checkpoint_id="checkpoint-1",
        generation=1,
        step=1,
        epoch=0,
        created_at="2030-01-02T03:04:05Z",
        files=files,
    )
