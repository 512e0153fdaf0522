"""What a report draws: metrics as they were done last, saves on their way, a scale of time."""

from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from bt_lightning.cli.report.clock_scale import clock_scale
from bt_lightning.manage.metric_series import metric_series, number_of
from bt_lightning.manage.run_history import Run
from bt_lightning.manage.save_times import save_times


def row(at, step, value):
    return {"event": "metrics", "at": at, "step": step, "values": {"loss": value}}


def save(began, step, **more):
    name = f"checkpoint-{step}"
    facts = {"event": "save", "checkpoint_id": name, "step": step, "decision": "saved"}
    return {**facts, "at": began + 3, "began": began, "call_ms": 5.0, **more}


def end(kind, at, step):
    seconds = {"local_durable_s": 1.25, "remote_durable_s": 2.0} if step == 5 else {}
    return {"event": kind, "at": at, "checkpoint": f"checkpoint-{step}", "bytes": 9, **seconds}


def test_a_run_replaces_what_lies_beyond_its_first_step():
    """Also of metrics that it logs less often, before its first row of them."""
    rows = [row(1.0, 5, 1.0), row(2.0, 10, 2.0), row(3.0, 15, 3.0)]
    told = metric_series(rows, [Run(0.0, 0), Run(9.0, 10)])["loss"]
    assert (told.points, told.replaced) == ([(5, 1.0), (10, 2.0), (15, 3.0)], [])  # no row yet
    told = metric_series([*rows, row(9.5, 12, 9.0)], [Run(0.0, 0), Run(9.0, 10)])["loss"]
    assert told.points == [(5, 1.0), (10, 2.0), (12, 9.0)]
    assert told.replaced == [[(10, 2.0), (15, 3.0)]]  # joined to the point that stays


def test_without_events_a_step_that_falls_is_a_restart():
    told = metric_series([row(1.0, 5, 1.0), row(2.0, 10, 2.0), row(3.0, 5, 3.0)])["loss"]
    assert told.points == [(5, 3.0)]
    assert told.replaced == [[(5, 1.0), (10, 2.0)]]


def test_a_step_that_is_logged_twice_counts_once_and_odd_rows_not_at_all():
    rows = [row(1.0, 1, 1.0), row(1.0, 1, 2.0), row(1.0, True, 3.0), row(1.0, 10**400, 4.0)]
    rows += [{"event": "metrics", "at": 1.0, "step": 2, "values": ["loss"]}, row(2.0, 2, "x")]
    assert metric_series(rows)["loss"].points == [(1, 2.0)]


def test_numbers_that_nobody_can_draw_are_infinite():
    assert number_of(10**400) == math.inf
    assert number_of(-1.5e308) == -math.inf
    assert math.isnan(number_of("1"))
    assert math.isnan(number_of(True))


def test_a_checkpoint_that_is_saved_again_is_a_save_of_its_own():
    events = [end("durable", 11.0, 5), save(10.0, 5), end("published", 12.0, 5)]
    events += [end("durable", 51.0, 5), save(50.0, 5), end("published", 55.0, 5)]
    told = save_times(events)
    assert [(one.began_at, one.disk_s, one.store_s) for one in told] == [
        (10.0, 1.25, 2.0),
        (50.0, 1.25, 2.0),
    ]
    (unsaid,) = save_times([save(10.0, 6), end("durable", 11.0, 6)])
    assert unsaid.disk_s == 1.0  # by the clocks of both processes
    assert [one.stall_s for one in told] == [0.005, 0.005]


def test_a_save_of_a_process_that_was_killed_is_known_by_its_worker():
    (told,) = save_times([end("durable", 11.0, 5), end("published", 14.0, 5)])
    assert (told.began_at, told.disk_at, told.store_at) == (9.75, 11.0, 14.0)
    assert (told.decision, told.stall_s, told.size) == ("", None, 9)
    (streamed,) = save_times([save(1.0, 5), end("streamed", 4.0, 5), end("published", 4.5, 5)])
    assert (streamed.disk_at, streamed.store_at, streamed.is_streamed) == (None, 4.0, True)


def test_long_pauses_are_narrow_and_short_ones_are_not():
    scale = clock_scale([(0.0, 100.0), (110.0, 200.0), (9000.0, 9100.0)])
    (pause,) = scale.pauses
    assert pause.seconds == 8800.0
    assert pause.high - pause.low < 0.06
    assert scale.at(110.0) - scale.at(100.0) > 0.02
    assert not clock_scale([(0.0, 100.0), (150.0, 200.0)]).pauses


stretch = st.tuples(st.floats(0, 9e10), st.floats(0, 1e9)).map(lambda s: (s[0], s[0] + s[1]))


@given(st.lists(stretch, min_size=1, max_size=12))
def test_a_scale_of_time_rises_from_0_to_1_with_few_ticks(stretches):
    scale = clock_scale(stretches)
    times = sorted(time_s for ends in stretches for time_s in ends)
    places = [scale.at(time_s) for time_s in times]
    assert all(0 <= low <= high <= 1.000001 for low, high in itertools.pairwise(places))
    assert places[0] == 0
    ticks = scale.ticks()
    assert len(ticks) <= 9
    assert all(0 <= place <= 1.000001 and label for place, label in ticks)
