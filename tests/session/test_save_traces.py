"""The spans of saves that fail, give way or are many; with the SDK's exporter in memory."""

from __future__ import annotations

import sys

import pytest

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.session import save_traces
from bt_lightning.session.save_traces import SaveTraces
from bt_lightning.snapshot.save_record import SaveRecord
from bt_lightning.traces import span, tracing


@pytest.fixture
def spans(monkeypatch):
    """Those of this test alone: a process has one provider, once and for all."""
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter.get_finished_spans
    provider.shutdown()


def record(number=1, **facts):
    return SaveRecord(number=number, checkpoint_id=f"checkpoint-{number}", step=number, **facts)


def names(spans):
    return [one.name.removeprefix("bt_lightning.") for one in spans()]


@pytest.mark.parametrize("decision", ["refused", "failed", "torn", "changed"])
def test_a_save_that_failed_is_an_error(spans, decision):
    traces = SaveTraces()
    traces.called(record(), 100.0)
    traces.ended(record(decision=decision))
    save, commit = spans()
    assert (save.status.is_ok, commit.status.is_ok) == (True, False)
    assert commit.status.description == f"the save was {decision}"


@pytest.mark.parametrize("decision", ["skipped", "replaced"])
def test_a_save_that_gave_way_has_no_commit(spans, decision):
    traces = SaveTraces()
    traces.called(record(decision=decision), 100.0)
    traces.ended(record(decision=decision))
    assert names(spans) == ["save"]


def test_times_are_those_of_the_worker(spans, monkeypatch):
    monkeypatch.setattr(save_traces.time, "time", lambda: 1000.5)
    times = {"local_durable_s": 5.0, "remote_durable_s": 9.0, "write_s": 2.0}
    traces, known = SaveTraces(), record(call_ms=500.0, **times)
    traces.called(known, 999.0)  # it waited for an arena until 1000
    traces.ended(known)
    traces.published(known, 3.0)
    traces.published(known, 3.0)  # once
    _, commit, upload = spans()
    assert (commit.start_time, commit.end_time) == (1003 * 10**9, 1005 * 10**9)
    assert (upload.start_time, upload.end_time) == (1006 * 10**9, 1009 * 10**9)


def test_of_saves_that_are_never_published_the_oldest_are_forgotten(spans, monkeypatch):
    monkeypatch.setattr(save_traces, "_MOST", 2)
    traces = SaveTraces()
    for number in (1, 2, 3):
        traces.called(record(number), 100.0)
    traces.published(record(1), 1.0)
    traces.published(record(3), 1.0)
    assert names(spans) == ["save", "save", "save", "upload"]


def test_an_error_inside_a_span_is_marked_and_raised(spans):
    error = CheckpointCorruptError("a bit is flipped")
    with pytest.raises(CheckpointCorruptError), span("restore", checkpoint="c"):
        raise error
    (found,) = spans()
    assert not found.status.is_ok


def test_without_the_package_nothing_happens(monkeypatch):
    monkeypatch.delitem(sys.modules, "opentelemetry.trace", raising=False)
    assert tracing() is None
    traces = SaveTraces()
    traces.called(record(), 100.0)
    traces.ended(record())
    traces.published(record(), 1.0)
    with span("restore", checkpoint="c"):
        pass
