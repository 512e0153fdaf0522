"""What the logs of a job tell of it, and that nothing is claimed which they do not tell."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bt_lightning.manage.run_history import run_history


def began(at, step):
    return {"event": "began", "at": at, "step": step, "host": "h"}


def row(at, step):
    return {"event": "metrics", "at": at, "step": step, "values": {"loss": 1.0}}


def save(at, step, decision="saved", **more):
    name = f"checkpoint-{step}"
    return {
        "event": "save",
        "at": at,
        "began": at - 1,
        "checkpoint_id": name,
        "step": step,
        "decision": decision,
        "number": 1,
        "call_ms": 250.0,
        **more,
    }


def durable(at, step, kind="durable"):
    return {"event": kind, "at": at, "checkpoint": f"checkpoint-{step}", "bytes": 10}


def test_without_events_nothing_is_known():
    assert not run_history([]).known
    assert not run_history([], [row(1.0, 1)]).known


def test_a_restart_tells_what_was_lost():
    """Killed at step 25, 5 s after the save of step 20; the next run goes on from there."""
    events = [began(0.0, 0), save(20.0, 20), durable(21.0, 20), began(60.0, 20)]
    rows = [row(float(step), step) for step in range(1, 26)]
    rows += [row(60.0 + step, step) for step in range(21, 31)]
    told = run_history(events, rows)
    assert (told.restarts, told.redone_steps, told.saves, told.stall_s) == (1, 5, 1, 0.25)
    assert told.redone_s == 6.0  # from the call of that save
    assert [(run.began_step, run.last_step, run.end) for run in told.runs] == [
        (0, 25, ""),
        (20, 30, ""),
    ]


def test_the_runner_tells_how_a_run_ended_that_could_not():
    """And nothing of a run whose machine died with the runner."""
    ended = {"event": "attempt_ended", "number": 0, "outcome": "failed"}
    again = {"event": "attempt_began", "number": 1}
    events = [began(0.0, 0), {**ended, "at": 5.0, "signal": 9}, {**again, "at": 6.0}]
    events += [began(7.0, 0), {**again, "at": 90.0}, {**ended, "at": 91.0, "exit_code": 1}]
    told = run_history(events)
    assert [run.outcome for run in told.runs] == ["failed with signal 9", ""]
    assert [text for _, text in told.failures] == [
        "attempt 0: failed with signal 9",
        "attempt 0: failed with exit code 1",
    ]


def test_a_run_that_ended_well_is_no_restart_and_loses_nothing():
    events = [began(0.0, 0), {"event": "ended", "at": 9.0, "failed": False, "step": 9}]
    events += [began(10.0, 0), {"event": "ended", "at": 19.0, "failed": True, "step": 9}]
    told = run_history(events)
    assert (told.restarts, told.redone_steps) == (0, 0)
    assert [run.end for run in told.runs] == ["ended", "failed"]
    assert [text for _, text in told.failures] == ["the training ended with an error"]


def test_failures_are_told_in_their_order():
    events = [
        {"event": "store_failed", "at": 3.0, "error": "no"},
        {"event": "worker_died", "at": 1.0, "error": "killed"},
        save(2.0, 5, "refused"),
        {"event": "attempt_ended", "at": 4.0, "number": 0, "outcome": "failed", "signal": 9},
        {"event": "attempt_ended", "at": 5.0, "number": 1, "outcome": "done", "exit_code": 0},
    ]
    assert [text for _, text in run_history(events).failures] == [
        "worker: killed",
        "save 1 of step 5: refused",
        "store: no",
        "attempt 0: failed with signal 9",
    ]


def test_when_each_checkpoint_was_durable_where():
    events = [durable(1.0, 5), save(1.5, 5), durable(3.0, 5, "published"), durable(9.0, 10)]
    told = run_history([*events, durable(12.0, 15, "streamed")]).durable
    found = {name: (one.step, one.disk_at, one.store_at) for name, one in told.items()}
    assert found == {
        "checkpoint-5": (5, 1.0, 3.0),
        "checkpoint-10": (None, 9.0, None),
        "checkpoint-15": (None, None, 12.0),
    }


ODD = st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=3), st.lists(st.none()))
KINDS = ["began", "save", "metrics", "ended", "durable", "published", "attempt_ended", "x"]
NAMES = ["step", "began", "checkpoint", "checkpoint_id", "decision", "host"]
EVENT = st.builds(
    lambda kind, at, more: {**more, "event": kind, "at": at},
    st.sampled_from(KINDS),
    st.floats(0, 1e11),
    st.dictionaries(st.sampled_from(NAMES), ODD),
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # of a busy machine
@given(st.lists(EVENT, max_size=20))
def test_any_events_have_a_history(events):
    """Anybody may have written them."""
    told = run_history(events)
    assert told.known == any(event["event"] != "metrics" for event in events)
    assert told.redone_steps >= 0
