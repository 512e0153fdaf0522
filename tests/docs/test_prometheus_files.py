"""The alerts and the dashboard in docs/prometheus, and the page that lists the metrics.

`promtool` of Prometheus (`$BT_TEST_PROMTOOL`, or in PATH) checks and tries the alerts where it is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess

import pytest
import yaml

from bt_lightning.run_metrics import TABLE, EventCounts, PlaceFacts, RunFacts, run_samples
from tests.docs.code_blocks import PROJECT

FOLDER = PROJECT / "docs" / "prometheus"
PAGE = (PROJECT / "docs" / "monitoring.md").read_text()
ALERTS = yaml.safe_load((FOLDER / "alerts.yml").read_text())
BOARD = json.loads((FOLDER / "dashboard.json").read_text())
PROMTOOL = os.environ.get("BT_TEST_PROMTOOL") or shutil.which("promtool")
FUNCTIONS = {"changes", "increase", "min_over_time", "rate", "sum", "time"}
KEYWORDS = {"and", "by", "ignoring", "unless"}
COMMON = {"project", "job_id", "node"}
TOKEN = re.compile(
    r"(?P<name>[a-z_]+)|(?P<number>[0-9.]+)|(?P<range>\[(?:[0-9]+[smhd]|\$__rate_interval)\])"
    r"|(?P<selector>\{[^}]*\})|(?P<sign>[-+*/<>()]|==|,)|(?P<space>\s+)"
)
MATCHER = re.compile(r'\s*([a-z_]+)(=~|=)"([^"]*)"\s*')


def labels_of_metrics():
    """Metric -> label -> values, of each series that there may be."""
    place = PlaceFacts(count=1, size=1, newest_at=1.0)
    seen = RunFacts(
        version="1",
        at=1.0,
        training=True,
        places={"disk": place, "store": place},
        waiting=0,
        waiting_bytes=0,
        sent_bytes=0,
        store_failing=False,
        store_refusing=False,
        has_store=True,
        request_retries=0,
        publish_failures=0,
        disk_free=0,
        budget=1,
    )
    counts = EventCounts()
    for began in (1, 2):
        counts.add({"event": "save", "decision": "saved", "began": began})
    found = {}
    for metric, _, labels, suffix in run_samples(seen, counts):
        known = found.setdefault(metric.name + suffix, {})
        for label, value in labels:
            known.setdefault(label, set()).add(value)
    return found


SERIES = labels_of_metrics()


def check(expression):
    """Raise unless each word of `expression` is one that there is; what it asks of labels too."""
    at, metric, depth = 0, None, 0
    while at < len(expression):
        found = TOKEN.match(expression, at)
        assert found, f"{expression[at : at + 20]!r} in {expression}"
        kind, text, at = found.lastgroup, found[0], found.end()
        if kind == "name" and text not in FUNCTIONS | KEYWORDS | COMMON | {"place"}:
            known = {label for labels in SERIES.values() for label in labels}
            assert text in SERIES or text in known, f"{text} in {expression}"
            metric = text
        elif kind == "selector":
            for part in text[1:-1].split(","):
                label, sign, value = MATCHER.fullmatch(part).groups()
                if label not in COMMON:
                    values = set(value.split("|") if sign == "=~" else [value])
                    assert values <= SERIES[metric][label], f"{part} of {metric}"
        elif kind == "sign":
            depth += {"(": 1, ")": -1}.get(text, 0)
            assert depth >= 0
    assert depth == 0


def expressions():
    rules = [rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]]
    targets = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
    return rules + targets


def test_words_that_there_are_not_are_found():
    for wrong in (
        "bt_lightning_nothing > 0",
        'bt_lightning_checkpoints{place="moon"}',
        "rate(bt_lightning_evicted_total[5m]",
        "bt_lightning_evicted_total & 1",
    ):
        with pytest.raises(AssertionError):
            check(wrong)


@pytest.mark.parametrize("expression", expressions())
def test_alerts_and_dashboard_ask_for_what_is_written(expression):
    check(expression)


def test_alerts_say_what_they_are():
    rules = [rule for group in ALERTS["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) > 10
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}, rule["alert"]
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}
        assert set(rule["annotations"]) == {"summary", "description"}
        assert "{{ $labels.job_id }}" in rule["annotations"]["summary"]


def test_every_metric_is_on_the_page_and_looked_at():
    listed = re.findall(r"^\| `([a-z_]+)` \| (\w+) \| .* \| (.*) \|$", PAGE, re.MULTILINE)
    prefix = "bt_lightning_"
    assert listed == [(m.name.removeprefix(prefix), m.kind, m.help) for m in TABLE]
    asked = " ".join([*expressions(), json.dumps(BOARD["templating"])])
    assert {metric.name for metric in TABLE if metric.name not in asked} == set()


def test_panels_lie_beside_each_other():
    taken = set()
    for panel in BOARD["panels"]:
        x, y, width, height = (panel["gridPos"][key] for key in "xywh")
        cells = {(x + i, y + j) for i in range(width) for j in range(height)}
        assert x + width <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


@pytest.mark.skipif(PROMTOOL is None, reason="promtool of Prometheus is not there")
def test_promtool_takes_the_alerts_and_they_are_raised(tmp_path):
    subprocess.run([PROMTOOL, "check", "rules", FOLDER / "alerts.yml"], check=True)
    shutil.copy(FOLDER / "alerts.yml", tmp_path)
    shutil.copy(PROJECT / "tests" / "docs" / "alerts_test.yml", tmp_path)
    command = [PROMTOOL, "test", "rules", tmp_path / "alerts_test.yml"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
