"""The logs of a job: names of their objects, what of them stays, and what a log gets of a line."""

from __future__ import annotations

import math

from hypothesis import example, given
from hypothesis import strategies as st

from bt_lightning.localdir.event_log import append, event_of, log_line, read_events
from bt_lightning.log_kinds import (
    METRICS,
    SEGMENT_BYTES,
    Segment,
    first_segment,
    segment_of_name,
)
from bt_lightning.runtime.printed_lines import BAR_S, MOST_BYTES, PROMPT_S, PrintedLines
from bt_lightning.session.metrics_log import MetricsLog
from bt_lightning.store.secrets import hide, log_secrets
from bt_lightning.worker.send_logs import surplus


def test_a_segment_is_found_by_its_name_and_sorts_by_time():
    first = first_segment(log_line("began", 1_700_000_000.25))
    later = first_segment(log_line("began", 1_700_000_001.0))._replace(number=3)
    assert first.began_ms == 1_700_000_000_250
    assert sorted([later.name, first.name]) == [first.name, later.name]
    assert segment_of_name(later.name) == later
    for odd in ("", "x.jsonl", f"{first.name}.part", f".{first.name}"):
        assert segment_of_name(odd) is None


def test_a_first_line_of_another_program_has_a_name_too():
    for line in (b"", b"not json", b"[]", b'{"at": "now"}', b'{"at": 1e999}', b'{"at": NaN}'):
        assert segment_of_name(first_segment(line).name) is not None


@example([6134, 256011, 1, 256010, *[SEGMENT_BYTES] * 3], 8)
@given(st.lists(st.integers(1, SEGMENT_BYTES), max_size=60), st.integers(1, 40))
def test_the_first_and_the_last_of_a_log_stay(sizes, most):
    objects = {Segment(0, "0" * 8, number): size for number, size in enumerate(sizes)}
    most_bytes = 4 * SEGMENT_BYTES
    gone = surplus(objects, most_bytes, most)
    kept = sorted(objects.keys() - set(gone))
    assert sum(objects[one] for one in kept) <= most_bytes
    assert len(kept) <= most
    if sum(sizes) <= most_bytes and len(sizes) <= most:
        assert gone == []
    if gone:
        numbers = [one.number for one in gone]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))  # one gap
        if most >= 4:
            assert numbers[0] > 0 or sizes[0] * 4 > most_bytes


def printed(*pieces, at=0.0):
    lines = PrintedLines()
    return [line for piece in pieces for line in lines.add(piece, at)] + lines.rest(at, ended=True)


def test_lines_come_whole_however_they_were_cut():
    assert printed(b"on", b"e\ntw", b"o\n\nthr\xc3", b"\xa9e") == ["one", "two", "thr\u00e9e"]
    assert printed(b"windows\r", b"\nlines\r\n") == ["windows", "lines"]


def test_of_a_progress_bar_the_log_gets_the_end_and_a_state_now_and_then():
    lines = PrintedLines()
    got = []
    for second in range(100):
        got += lines.add(b"\rEpoch 0: %d%%" % second, float(second))
    assert len(got) == 100 // BAR_S
    assert lines.add(b"\rEpoch 0: 100%\n", 100.0) == ["Epoch 0: 100%"]


def test_colours_and_movements_of_the_cursor_are_left_out():
    text = b"\x1b[1;31mred\x1b[0m \x1b]8;;http://x\x07link\x1b]8;;\x07\x1b[A\x1b[2K\x08.\n"
    assert printed(text) == ["red link."]


def test_a_line_without_an_end_is_logged_when_it_rests():
    lines = PrintedLines()
    assert lines.add(b"password? ", 0.0) == []
    assert lines.rest(PROMPT_S / 2) == []
    assert lines.rest(PROMPT_S) == ["password?"]
    assert lines.rest(2 * PROMPT_S) == []


def test_a_secret_at_the_cut_of_a_long_line_is_hidden():
    secret = "s3cret-value"
    for before in range(MOST_BYTES - len(secret), MOST_BYTES + 1):
        lines = PrintedLines()
        lines.hide, lines.longest_secret = (lambda text: hide(text, {secret})), len(secret)
        got = lines.add(b"x" * before + secret[:6].encode(), 0.0)
        got += lines.add(secret[6:].encode() + b"y" * MOST_BYTES + b"\n", 0.0)
        assert "s3cret" not in hide("\n".join(got), {secret})
        assert "".join(got).count("y") == MOST_BYTES


def test_values_of_variables_that_are_named_as_secrets_are_secrets():
    pem = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhki\nabc\n-----END KEY-----"
    environment = {
        "AWS_SECRET_ACCESS_KEY": "aaaaaa/bbbbbb",
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "WANDB_API_KEY": "cccccc",
        "HF_TOKEN": 'dd"dddd',
        "database_password": "eeeeee",
        "DATABASE": "postgres://user:ffffff@host/db",
        "TLS_KEY": pem,
        "HOME": "/home/somebody",
        "TOKENIZERS_PARALLELISM": "falsely",
        "PIN_KEY": "1",
    }
    secrets = log_secrets(environment, ["gggggg"])
    text = "\n".join([*environment.values(), "gggggg", "aaaaaa%2Fbbbbbb", '{"x": "dd\\"dddd"}'])
    shown = hide(text, secrets)
    for letter in "abcdefg":
        assert letter * 6 not in shown
    assert "AKIAEXAMPLE" not in shown
    assert "MIIEvQ" not in shown
    assert "dddd" not in shown
    assert "/home/somebody" in shown
    assert "falsely" in shown


def test_rows_go_in_few_messages_and_wait_for_a_worker_that_does_not_read():
    now, taken, takes = 0.0, [], True

    def send(lines):
        if takes:
            taken.append(lines)
        return takes

    log = MetricsLog(send, lambda: now)
    for step in range(50):
        log.add(step, {"loss": float(step)})
    assert len(taken) == 1  # the first at once
    now = 1.0
    log.pass_on()
    assert len(taken) == 2
    takes = False
    now = 2.0
    log.add(50, {"loss": math.nan, "huge": math.inf})
    takes = True
    log.flush()
    rows = [event_of(line) for line in b"".join(taken).splitlines()]
    assert [row["step"] for row in rows] == list(range(51))
    assert math.isnan(rows[-1]["values"]["loss"])
    assert rows[-1]["values"]["huge"] == math.inf


def test_a_row_of_very_many_metrics_is_cut_so_that_it_can_be_read(tmp_path):
    taken = []
    log = MetricsLog(lambda lines: taken.append(lines) or True)
    log.add(1, {f"{'n' * 300}{number}": 1.0 for number in range(5000)})
    append(tmp_path, b"".join(taken), METRICS)
    assert [event["step"] for event in read_events(tmp_path, kind=METRICS)] == [1]
