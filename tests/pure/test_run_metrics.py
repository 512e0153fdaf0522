"""The metrics for Prometheus: text, counts of events, where they go."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt_lightning.errors import InvalidSettingError
from bt_lightning.localdir.event_log import append, log_line, note
from bt_lightning.localdir.event_tail import EventTail
from bt_lightning.log_kinds import EVENTS
from bt_lightning.metrics_target import MetricsTarget
from bt_lightning.path_layout import DOT_DIR
from bt_lightning.prometheus_text import Metric, Sample, prometheus_text
from bt_lightning.run_metrics import TABLE, EventCounts, PlaceFacts, RunFacts, run_samples


def facts(**others):
    place = PlaceFacts(count=2, size=30, newest_at=99.5, newest_step=7)
    given = {
        "version": "1",
        "at": 100.25,
        "training": True,
        "places": {"disk": place, "store": place},
        "waiting": 1,
        "waiting_bytes": 5,
        "sent_bytes": 6,
        "store_failing": False,
        "store_refusing": False,
        "has_store": True,
        "request_retries": 3,
        "publish_failures": 4,
        "disk_free": 1000,
        "budget": 2000,
    }
    return RunFacts(**{**given, **others})


def counted(*events):
    counts = EventCounts()
    for event in events:
        counts.add(event)
    return counts


def values(counts, **others):
    """name{labels} -> value."""
    found = {}
    for metric, value, labels, suffix in run_samples(facts(**others), counts):
        name = metric.name.removeprefix("bt_lightning_") + suffix
        found[(name, *dict(labels).values())] = value
    return found


SAVE = {"event": "save", "decision": "saved", "call_ms": 20.0, "guard_ms": 5.0}


def test_every_metric_of_the_table_has_a_sample_and_no_other_has():
    saves = [{**SAVE, "began": began} for began in (10.0, 20.0)]
    sampled = [sample.metric for sample in run_samples(facts(), counted(*saves))]
    assert list(dict.fromkeys(sampled)) == list(TABLE)
    assert len({metric.name for metric in TABLE}) == len(TABLE)


def test_names_and_kinds_are_as_prometheus_wants_them():
    for metric in TABLE:
        assert set(metric.name) <= set(string.ascii_lowercase + "_")
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric
        assert metric.help.endswith(".")
        assert "\n" not in metric.help


def test_what_happened_is_counted():
    counts = counted(
        {"event": "began", "step": 0},
        {**SAVE, "began": 10.0},
        {**SAVE, "began": 20.0, "decision": "waited"},
        {**SAVE, "began": 25.0, "decision": "refused"},
        {**SAVE, "began": 50.0},
        {"event": "durable", "local_durable_s": 1.5},
        {"event": "streamed", "local_durable_s": 9.0},
        {"event": "published", "remote_durable_s": 3.0},
        {"event": "evicted", "bytes": 500},
        {"event": "store_failed", "error": "no", "permanent": False},
        {"event": "worker_died", "error": "no"},
    )
    found = values(counts)
    assert found["saves_total", "saved"] == 2
    assert found["saves_total", "waited"] == found["saves_total", "refused"] == 1
    assert found["save_blocked_seconds_total",] == pytest.approx(0.1)
    assert found["save_interval_seconds",] == 20.0  # of 10 and 30
    assert found["save_durable_seconds_sum", "disk"] == 1.5
    assert found["save_durable_seconds_count", "disk"] == 1
    assert found["save_durable_seconds_sum", "store"] == 3.0
    assert found["streamed_total",] == found["evicted_total",] == 1
    assert found["evicted_bytes_total",] == 500
    assert found["failures_total", "store"] == found["failures_total", "worker"] == 1
    assert found["failures_total", "disk"] == 0
    assert counts.training


def test_a_training_that_says_nothing_more_is_lost():
    lost = [{"event": "began"}, {"event": "began"}]
    assert counted(*lost).runs == {"lost": 1}
    killed = counted({"event": "began"}, {"event": "attempt_ended", "outcome": "failed"})
    assert (killed.runs, killed.attempts) == ({"lost": 1}, {"failed": 1})
    assert not killed.training
    ends = counted(
        {"event": "began"},
        {"event": "ended", "failed": False},
        {"event": "attempt_ended", "outcome": "done"},
        {"event": "began"},
        {"event": "ended", "failed": True},
        {"event": "began"},
        {"event": "preempted"},
        {"event": "ended", "failed": True},
    )
    assert ends.runs == {"ended": 1, "failed": 1, "preempted": 1}


def test_without_a_store_nothing_is_said_of_one():
    found = values(EventCounts(), has_store=False, places={}, budget=None)
    names = {name for name, *_ in found}
    assert not names & {"waiting_bytes", "sent_bytes_total", "store_failing", "checkpoints"}
    assert "disk_budget_bytes" not in names


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
KINDS = ("save", "durable", "published", "evicted", "began", "ended", "attempt_ended", "streamed")
FIELDS = ("decision", "began", "at", "call_ms", "bytes", "local_durable_s", "outcome", "failed")


@given(st.lists(st.dictionaries(st.sampled_from(FIELDS), anything), max_size=4), st.data())
def test_an_event_may_say_anything(events, data):
    kinds = st.sampled_from(KINDS) | anything
    counts = counted(*({**event, "event": data.draw(kinds)} for event in events))
    text = prometheus_text(run_samples(facts(), counts), {"job_id": "j"})
    assert all("nan" not in line.lower() for line in text.splitlines() if line[0] != "#")


def test_the_text_is_that_of_prometheus():
    metric = Metric("a_total", "counter", "Of \\ and\nmore.")
    samples = [Sample(metric, 1.0), Sample(metric, 0.25, (("name", 'a"b\\c\nd'),))]
    assert prometheus_text(samples, {"job_id": "j"}) == (
        "# HELP a_total Of \\\\ and\\nmore.\n"
        "# TYPE a_total counter\n"
        'a_total{job_id="j"} 1\n'
        'a_total{job_id="j",name="a\\"b\\\\c\\nd"} 0.25\n'
    )
    assert prometheus_text([Sample(metric, float("inf"))], {}).endswith("a_total{} +Inf\n")


def test_prometheus_reads_it():
    parser = pytest.importorskip("prometheus_client.parser")
    samples = list(run_samples(facts(), counted({**SAVE, "began": 1}, {**SAVE, "began": 2})))
    text = prometheus_text(samples, {"job_id": 'odd "name"\\\n', "project": "p"})
    families = list(parser.text_string_to_metric_families(text))
    read = [sample for family in families for sample in family.samples]
    assert sorted(s.value for s in read) == sorted(float(s.value) for s in samples)
    assert {sample.labels["job_id"] for sample in read} == {'odd "name"\\\n'}
    assert {f"{f.name}_total" if f.type == "counter" else f.name: f.type for f in families} == {
        metric.name: metric.kind for metric in TABLE
    }


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9464", ("127.0.0.1", 9464)),
        (" 1", ("127.0.0.1", 1)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
        ("[::1]:80", ("::1", 80)),
        ("host.example:80", ("host.example", 80)),
    ],
)
def test_a_port_is_one_of_this_machine_unless_a_host_is_named(text, address):
    assert MetricsTarget.from_environ({"BT_METRICS_PORT": text}).address == address


@pytest.mark.parametrize("text", ["x", "0", "65536", "-1", ":80", "::1:80", "1.5", "٣", "9" * 5000])
def test_what_is_no_port_is_refused(text):
    with pytest.raises(InvalidSettingError, match="BT_METRICS_PORT is"):
        MetricsTarget.from_environ({"BT_METRICS_PORT": text})


def test_without_variables_there_are_no_metrics():
    assert not MetricsTarget.from_environ({"BT_METRICS_PORT": "", "BT_METRICS_FILE": ""})


def steps(tail):
    return [event["step"] for event in tail.read()]


def test_each_event_is_read_once_also_when_the_file_is_renamed(tmp_path):
    tail = EventTail(tmp_path)
    assert steps(tail) == []
    note(tmp_path, "save", step=1)
    note(tmp_path, "save", step=2)
    assert steps(tail) == [1, 2]
    assert steps(tail) == []
    note(tmp_path, "save", step=3)
    folder = tmp_path / DOT_DIR
    (folder / EVENTS.file).replace(folder / EVENTS.older)
    note(tmp_path, "save", step=4)
    assert steps(tail) == [3, 4]
    assert steps(EventTail(tmp_path)) == [1, 2, 3, 4]
    tail.close()


def test_a_line_that_is_half_written_is_read_when_it_is_whole(tmp_path):
    note(tmp_path, "save", step=1)
    tail = EventTail(tmp_path)
    assert steps(tail) == [1]
    line = json.dumps({"event": "save", "at": 1.0, "step": 2}).encode() + b"\n"
    with (tmp_path / DOT_DIR / EVENTS.file).open("ab", buffering=0) as file:
        file.write(line[:9])
        assert steps(tail) == []
        file.write(line[9:] + b"rubbish\n[]\n")
    append(tmp_path, log_line("save", 1.0, step=3), EVENTS)
    assert steps(tail) == [2, 3]
    (tmp_path / DOT_DIR / EVENTS.file).write_bytes(b"")  # somebody emptied it
    note(tmp_path, "save", step=4)
    tail.close()
    tail = EventTail(tmp_path)
    assert steps(tail) == [4]
    tail.close()
