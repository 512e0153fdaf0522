"""The report: one page that needs nothing else, of whatever jobs left, here or in a store."""

from __future__ import annotations

import math
import random
import shutil
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bt_lightning.cli.report.chart_scale import scale_of, thinned, tick_labels, ticks
from bt_lightning.cli.report.html_report import page
from bt_lightning.cli.report.svg_chart import Band, ChartMark, Line, bar_chart, line_chart
from bt_lightning.localdir.event_log import append, log_line
from bt_lightning.log_kinds import EVENTS, METRICS
from bt_lightning.manage.directory_checkpoints import DirectoryCheckpoints
from bt_lightning.manage.job_facts import facts_of_logs
from bt_lightning.manage.job_logs import Logged
from bt_lightning.path_layout import job_prefix
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.worker.send_logs import LogSender

AT = 1_767_323_045.0  # 2026-01-02 03:04:05
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


class Page(HTMLParser):
    """Fails on a tag that is closed before those in it; collects tags, attributes and text."""

    VOID = ("meta", "path", "rect")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.attributes = [], [], "", []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def count(self, css):
        return self.attributes.count(("class", css))

    def needs_nothing(self):
        used = {"script", "link", "img", "iframe", "object", "embed", "base"}.intersection(
            self.tags
        )
        fetched = [value for name, value in self.attributes if name in {"src", "href", "srcset"}]
        return not used and not fetched and ("content", POLICY) in self.attributes


def began(at, step, host="h"):
    return {"event": "began", "at": at, "step": step, "host": host, "pid": 1}


def row(at, step, **values):
    return {"event": "metrics", "at": at, "step": step, "epoch": 0, "values": values}


def saved(at, step, decision="saved"):
    """A save of 2 s to the disk and 5 s to the store."""
    name = f"checkpoint-{step}"
    facts = {"number": 1, "checkpoint_id": name, "step": step, "decision": decision}
    save = {"event": "save", "at": at + 2, "began": at, "call_ms": 3.0, "guard_ms": 1.0, **facts}
    if decision != "saved":
        return [save]
    known = {"checkpoint": name, "bytes": 7_000_000}
    return [
        {"event": "durable", "at": at + 2, "local_durable_s": 2.0, **known},
        save,
        {"event": "published", "at": at + 5, "remote_durable_s": 5.0, **known},
    ]


KILLED = [
    began(AT, 0),
    *saved(AT + 20, 20),
    *saved(AT + 24, 24, "skipped"),
    {"event": "attempt_ended", "at": AT + 31, "number": 0, "signal": 9, "outcome": "failed"},
    began(AT + 60, 20),
    {"event": "ended", "at": AT + 80, "failed": False, "step": 40, "checkpoint": "final-40"},
]
ROWS = [row(AT + step, step, loss=100.0 / step) for step in range(1, 31)]
ROWS += [row(AT + 40 + step, step, loss=90.0 / step) for step in range(21, 41)]


def facts(events, rows=(), name="j", items=(), refused=()):
    job = SimpleNamespace(project="p", job=name, name="s3://b/x")
    logs = [[Logged(0, one) for one in events] for events in (events, rows)]
    return facts_of_logs(job, items, *logs, record=None, refused=refused)


def shown(*jobs):
    return Page(page(jobs, "2026-01-02T05:00:00+00:00", "0.0.0"))


def write(root, events, rows):
    for kind, logged in ((EVENTS, events), (METRICS, rows)):
        for one in logged:
            fields = {name: value for name, value in one.items() if name not in {"event", "at"}}
            append(root, log_line(one["event"], one["at"], **fields), kind)


def test_a_page_shows_metrics_restarts_saves_and_failures(cli, tmp_path, make):
    root, out = tmp_path / "ck", tmp_path / "report.html"
    make(root, "checkpoint-20", 20)
    write(root, KILLED, ROWS)
    (root / "bad").mkdir()
    (root / "bad" / "bt_manifest.json").write_text("{")
    done = cli("report", "--dir", root, "--output", out, env={"BT_TRAINING_JOB_ID": "j1"})
    assert f"1 checkpoint, {len(KILLED)} events, 50 rows of metrics" in done.stdout
    seen = Page(out.read_text())
    assert seen.needs_nothing()
    assert "10 steps done again" in seen.text
    assert "10 steps, 20 to 30, were done again" in seen.text  # the band on the metric
    assert "last 2.25, lowest 2.25 at step 40, highest 100 at 1" in seen.text
    assert "checkpoint-20, 7.00 MB, training waited 4.0 ms, on the disk after 2.00 s" in seen.text
    assert "save 1 of step 24: skipped" in seen.text
    assert seen.text.count("failed with signal 9") == 4  # figure, time line, run, failure
    assert "damaged: " in seen.text
    assert seen.count("redo") == 3  # in the key, on the time line, on the metric
    assert seen.count("l s0 faint") == 1


def test_a_chart_does_not_say_its_name_twice():
    seen = shown(facts(KILLED, ROWS))
    assert seen.text.count("loss") == 1


def test_a_page_of_nothing_claims_nothing(cli, tmp_path):
    (tmp_path / "ck").mkdir()
    cli("report", "--dir", tmp_path / "ck", "--output", tmp_path / "r.html")
    seen = Page((tmp_path / "r.html").read_text())
    assert seen.text.count("not known") + seen.text.count("Not known") >= 4
    assert "None in the events" not in seen.text


def test_events_without_a_run_do_not_say_that_none_restarted():
    seen = shown(facts(saved(AT, 20)))
    assert "no event says that a run began" in seen.text
    assert "How it ended is not known" in seen.text


def test_of_very_many_runs_the_newest_are_shown_and_the_others_counted():
    events = [began(AT + number, number, f"host-{number}") for number in range(207)]
    html = page([facts(events)], "2026-01-02T03:04:05+00:00", "1")
    shown = [number for number in range(207) if f">host-{number}<" in html]
    assert shown == list(range(7, 207))
    assert "7 older ones are left out." in html


def test_without_rows_the_values_of_kept_checkpoints_are_shown_as_such(tmp_path, make):
    for step in (10, 20):
        make(tmp_path, f"checkpoint-{step}", step)
    seen = shown(facts([], items=DirectoryCheckpoints(tmp_path).items()))
    assert "these are the values of kept checkpoints" in seen.text
    assert "last 0.05" in seen.text


def test_values_that_are_not_finite_are_named_and_marked():
    rows = [row(AT + n, n, loss=math.nan if n == 5 else float(n)) for n in range(1, 9)]
    rows += [row(AT + 9, 9, loss=math.inf), row(AT + 10, 10, loss=10**400)]
    seen = shown(facts([began(AT, 0)], rows))
    assert "NaN or infinite at 3 steps, first 5" in seen.text
    assert seen.count("nan") == 3


CSV = ("epoch,loss,acc,step\n0,4.0,,10\n0,3.0,,20\n0,,0.5,20\n", "step,loss\n20,2.5\nx,1\n30,nan\n")


@pytest.mark.parametrize("place", ["directory", "store"])
def test_without_rows_the_files_of_loggers_are_read(cli, tmp_path, place):
    """The files of a second start count from its first step on, each metric for itself."""
    store = tmp_path / "store"
    root = store / job_prefix("p", "j", 0) if place == "store" else tmp_path / "ck"
    for version, text in ((9, CSV[0]), (10, CSV[1]), (11, ""), (12, "a\0b\n1,2\n")):
        folder = root / "lightning_logs" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(text)
    at = ("j", "--store", store.as_uri()) if place == "store" else ("--dir", root)
    cli("report", *at, "--output", tmp_path / "r.html")
    seen = Page((tmp_path / "r.html").read_text())
    assert "from CSV files of loggers" in seen.text
    assert "last nan, lowest 2.5 at step 20, highest 4 at 10" in seen.text
    assert "NaN or infinite at step 30" in seen.text
    assert "acc0.5" in seen.text


@pytest.fixture
def store(tmp_path):
    """A store with the logs of two jobs whose machines are gone; neither has a checkpoint."""
    for job, scale in (("a", 1.0), ("b", 0.5)):
        root = tmp_path / f"root-{job}"
        root.mkdir()
        rows = [{**one, "values": {"loss": scale * one["values"]["loss"]}} for one in ROWS]
        write(root, KILLED, rows)
        sender = LogSender(root, LocalStore(tmp_path / "store"), job_prefix("p", job, 0))
        sender.send(ending=True)
        shutil.rmtree(root)
    return ("--store", (tmp_path / "store").as_uri())


@pytest.mark.parametrize("command", [("report",), ("jobs", "report")])
def test_the_store_alone_is_enough_of_a_job_whose_machine_is_gone(cli, store, tmp_path, command):
    out = tmp_path / "r.html"
    done = cli(*command, "a", *store, "--output", out)
    assert f"0 checkpoints, {len(KILLED)} events, 50 rows" in done.stdout
    seen = Page(out.read_text())
    assert "10 steps done again" in seen.text
    assert "None is committed." in seen.text


def test_several_jobs_are_compared_in_one_page(cli, store, tmp_path):
    out = tmp_path / "r.html"
    cli("report", "a", "b", *store, "--output", out)
    seen = Page(out.read_text())
    assert seen.needs_nothing()
    assert "2 jobs" in seen.text
    assert "b 1.125" in seen.text  # beside its colour, at the chart of all
    assert seen.count("l s0") == 1 + 2 * 3  # of both: two runs over time, and saves to the disk
    assert seen.count("l s1") == 1 + 2
    assert seen.tags.count("section") == 2


def test_a_job_that_is_not_in_the_store_is_named(cli, store, tmp_path):
    done = cli("report", "c", *store, "--output", tmp_path / "r.html", code=10)
    assert "nothing of a job c" in done.output
    assert not (tmp_path / "r.html").exists()


def test_nodes_other_than_the_first_add_failures_but_no_restarts():
    other = {"event": "attempt_ended", "at": AT, "number": 0, "exit_code": 3, "outcome": "failed"}
    logs = [*(Logged(0, one) for one in KILLED), Logged(1, began(AT, 0)), Logged(1, other)]
    job = SimpleNamespace(project="p", job="j", name="x")
    told = facts_of_logs(job, (), logs, [Logged(1, row(AT, 1, loss=1.0))], record=None, refused=())
    assert (told.history.restarts, told.metrics) == (1, {})
    assert "node 1: attempt 0: failed with exit code 3" in shown(told).text


def test_names_cannot_become_markup(tmp_path, make):
    evil = '"><script>alert(1)</script>&'
    made = make(tmp_path, "c", 1, metrics={evil: 1.0})
    items = DirectoryCheckpoints(tmp_path).items()
    events = [{**event, "error": evil} for event in saved(AT, 1)]
    events += [began(AT - 1, 0, evil), {"event": "store_failed", "at": AT, "error": evil}]
    events += [{**event, "checkpoint": evil, "checkpoint_id": evil} for event in saved(AT + 9, 2)]
    job = facts(events, [row(AT, 1, **{evil: 1.0})], evil, items, [evil])
    for seen in (shown(job), shown(job, job)):
        assert seen.needs_nothing()
        assert seen.text.count(evil) > 5
    assert made


def test_100_000_steps_become_a_page_that_opens_at_once():
    """No peak is lost, and the page does not grow with the steps."""
    noise = random.Random(1)
    rows = [row(AT + n, n, loss=noise.random()) for n in range(1, 100_001)]
    rows[70_000]["values"]["loss"] = 9.5
    text = page([facts([began(AT, 0)], rows)], "2026-01-02T05:00:00+00:00", "0")
    assert "highest 9.5 at 70,001" in text
    assert len(text) < 150_000


def test_peaks_stay_when_points_are_thinned():
    points = [(float(n), 100.0 if n == 777 else -50.0 if n == 333 else 0.0) for n in range(10_000)]
    (line,) = thinned(points, 100)
    assert len(line) <= 400
    assert {(777.0, 100.0), (333.0, -50.0), points[0], points[-1]} <= set(line)
    broken = thinned([(x, math.nan if 4000 < x < 6000 else y) for x, y in points], 100)
    assert len(broken) == 2


values = st.one_of(
    st.floats(), st.integers(), st.text(max_size=5), st.none(), st.booleans(), st.lists(st.none())
)
KINDS = ("began", "save", "durable", "published", "streamed", "ended", "preempted", "store_failed")
NAMES = ("step", "began", "checkpoint", "checkpoint_id", "bytes", "call_ms", "number", "failed")
MORE = ("host", "decision", "error", "local_durable_s", "remote_durable_s", "signal", "outcome")
fields = st.fixed_dictionaries(
    {
        "event": st.sampled_from((*KINDS, "attempt_ended", "left_out", "?")),
        "at": st.floats(0, 1e11, exclude_max=True),
    },
    optional=dict.fromkeys((*NAMES, *MORE), values),
)
logged_rows = st.fixed_dictionaries(
    {
        "event": st.just("metrics"),
        "at": st.floats(0, 1e11, exclude_max=True),
        "step": st.one_of(st.integers(), st.integers(0, 9)),
        "values": st.one_of(values, st.dictionaries(st.text(max_size=3), values, max_size=3)),
    }
)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=50)
@given(st.lists(fields, max_size=12), st.lists(logged_rows, max_size=12))
def test_whatever_the_logs_say_there_is_a_page(events, rows):
    ordered = [sorted(logged, key=lambda one: one["at"]) for logged in (events, rows)]
    job = facts(*ordered)
    for seen in (shown(job), shown(job, job)):
        assert seen.needs_nothing()


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False))
def test_ticks_are_few_and_between_the_ends(low, high):
    found = ticks(low, high)
    assert 1 <= len(found) <= 16 or (math.isinf(high) and len(found) == 1)


def test_ticks_have_labels_that_differ():
    assert tick_labels([0.16612, 0.16614]) == ["0.16612", "0.16614"]
    assert tick_labels([0, 500, 1000]) == ["0", "500", "1,000"]
    assert tick_labels([2.5e-7, 5e-7]) == ["2.5e-07", "5e-07"]


def test_a_few_large_values_make_the_scale_logarithmic():
    assert scale_of([1000.0, *[0.1 + n / 100 for n in range(50)]]).is_log
    assert not scale_of([1.0 - n / 50 for n in range(51)]).is_log  # a schedule that ends at 0
    assert not scale_of([-1000.0, 1.0, 2.0]).is_log


points = st.lists(st.tuples(st.floats(-1e300, 1e300), st.floats(-1e300, 1e300)), max_size=20)


@given(points, st.booleans(), st.lists(st.floats(-1e300, 1e300), max_size=4))
def test_any_numbers_make_a_chart_inside_its_frame(found, is_bars, places):
    found.sort()
    if is_bars:
        drawn = bar_chart([(x, y, "a<b") for x, y in found], "x<y", "x")
    else:
        bands = [Band(x, x + 1, "<i>") for x in places]
        marks = [ChartMark(x, "<i>") for x in places]
        drawn = line_chart([Line(found)], "a<b", "x", bands=bands, marks=marks)
    assert bool(drawn) == bool(found)
    for name, value in Page(drawn).attributes if drawn else ():
        if name == "style":
            assert -1 <= float(value.partition(":")[2].removesuffix("%")) <= 101
        elif name == "d":
            numbers = value.translate(str.maketrans("MLHVh", "     ")).split()
            assert all(-5 <= float(number) <= 1005 for number in numbers)
