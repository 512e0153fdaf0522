"""Spans of OpenTelemetry, of a script that traces itself with the SDK."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bt_lightning.localdir.event_log import mark_events, read_events

SCRIPT = Path(__file__).with_name("traced_runs.py")


def run(tmp_path, how):
    command = [sys.executable, SCRIPT, tmp_path / "ck", (tmp_path / "store").as_uri(), how]
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environ)
    return json.loads(done.stdout.splitlines()[-1])


def test_saves_commits_uploads_and_restores_are_spans_with_the_ids_of_events(tmp_path):
    pytest.importorskip("opentelemetry.sdk")
    assert run(tmp_path, "untraced") == []  # nothing is imported where nobody traces
    mark = mark_events(tmp_path / "ck")
    spans = run(tmp_path, "traced")
    named = {}
    for span in spans:
        named.setdefault(span["name"].removeprefix("bt_lightning."), []).append(span)
    (training,) = named["training"]
    saves, events = named["save"], list(read_events(tmp_path / "ck", mark))
    told = [event for event in events if event["event"] == "save"]
    key = "bt_lightning."
    assert [(s[f"{key}number"], s[f"{key}checkpoint"], s[f"{key}step"]) for s in saves] == [
        (event["number"], event["checkpoint_id"], event["step"]) for event in told
    ]
    assert {span["parent"] for span in saves} == {training["id"]}
    for name, ends in (("commit", "durable"), ("upload", "published")):
        ids = {event["checkpoint"] for event in events if event["event"] == ends}
        assert {span[f"{key}checkpoint"] for span in named[name]} == ids
        for span in named[name]:
            (save,) = (save for save in saves if save["id"] == span["parent"])
            assert save[f"{key}checkpoint"] == span[f"{key}checkpoint"]
            assert save["began"] <= span["began"] <= span["ended"] <= training["ended"]
            assert span[f"{key}bytes"] > 0
    (restore,) = named["restore"]
    assert restore[f"{key}step"] == 2
    (verify,) = named["verify"]
    assert verify[f"{key}step"] == 2
    assert verify["ended"] <= restore["began"]
    assert {span["status"] for span in spans} == {"UNSET"}
