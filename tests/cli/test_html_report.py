"""The report: one page that needs nothing else, of whatever a job left."""

from __future__ import annotations

import math
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from bt_lightning.cli.render.html_report import page
from bt_lightning.cli.render.svg_chart import Series, chart, ticks
from bt_lightning.localdir.event_log import note


class Page(HTMLParser):
    """Fails on a tag that is closed before those in it; collects tags, attributes and text."""

    VOID = ("meta", "line", "circle", "rect", "polyline")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.attributes = [], [], "", []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_page_shows_metrics_costs_restarts_and_failures(cli, tmp_path, make):
    root = tmp_path / "ck"
    for number, step in ((1, 10), (2, 20), (1, 30)):
        made = make(root, f"checkpoint-{step}", step)
        name = made.manifest.checkpoint_id
        decision = "skipped" if step == 20 else "saved"
        facts = {"number": number, "checkpoint_id": name, "step": step, "decision": decision}
        note(root, "save", call_ms=3.0, guard_ms=1.0, began=1.0, **facts)
        note(root, "durable", number=number, checkpoint=name, bytes=7, local_durable_s=0.5)
    note(root, "store_failed", error="listing s3://b: 403 AccessDenied", permanent=True)
    (root / "bad").mkdir()
    (root / "bad" / "bt_manifest.json").write_text("{")
    out = tmp_path / "report.html"
    done = cli("report", "--dir", root, "--output", out, env={"BT_TRAINING_JOB_ID": "j1"})
    assert "3 checkpoints, 7 events" in done.stdout
    shown = Page(out.read_text())
    assert shown.text.count("val_loss") >= 3
    assert "0.01 s" in shown.text
    assert "restarts" in shown.text
    assert "save 2 of step 20: skipped" in shown.text
    assert "damaged: " in shown.text
    assert "listing s3://b: 403 AccessDenied" in shown.text
    assert ("class", "mark") in shown.attributes
    assert not {"script", "link", "img", "iframe"}.intersection(shown.tags)
    assert not [value for name, value in shown.attributes if name in {"src", "href"}]


def test_a_page_of_nothing_says_so(cli, tmp_path):
    (tmp_path / "ck").mkdir()
    cli("report", "--dir", tmp_path / "ck", "--output", tmp_path / "r.html")
    assert "no events of the run" in Page((tmp_path / "r.html").read_text()).text


def test_names_cannot_become_markup(tmp_path, make):
    evil = '"><script>alert(1)</script>&'
    made = make(tmp_path, "c", 1, metrics={evil: 1.0})
    from bt_lightning.manage.directory_checkpoints import DirectoryCheckpoints

    items = DirectoryCheckpoints(tmp_path).items()
    shown = Page(page(evil, evil, evil, items, [evil], [{"event": "save", "at": 1, "step": evil}]))
    assert "script" not in shown.tags
    assert evil in shown.text
    assert made


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False))
def test_ticks_are_few_and_between_the_ends(low, high):
    found = ticks(low, high)
    assert 1 <= len(found) <= 16 or (math.isinf(high) and len(found) == 1)


points = st.lists(st.tuples(st.floats(), st.floats()), max_size=20)


@given(points, st.booleans())
def test_any_numbers_make_a_chart_inside_its_frame(found, bars):
    drawn = chart([Series("a<b", found)], "x", "y", bars=bars)
    if drawn:
        shown = Page(drawn)
        for name, value in shown.attributes:
            if name in {"cx", "cy", "x", "y", "x1", "x2", "y1", "y2", "width", "height"}:
                assert -30 <= float(value) <= 800
