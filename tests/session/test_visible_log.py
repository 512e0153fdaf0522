"""Whether the lines of a run are seen, once, and not where the application says otherwise."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest


def stderr_of(script: str) -> str:
    """What a process writes to stderr."""
    words = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    return done.stderr


SAY = """
    import logging
    from bt_lightning.session.visible_log import show_log
    {before}
    show_log({level!r})
    show_log({level!r})
    {after}
    logging.getLogger("bt_lightning.session.any").info("saves to %s", "/ck")
"""
CONFIGURE = "logging.basicConfig(format='APP %(message)s', level=logging.INFO)"


@pytest.mark.parametrize(
    ("before", "level", "after", "expected"),
    [
        ("", None, "", "bt_lightning: saves to /ck\n"),
        ("", "WARNING", "", ""),
        ("logging.getLogger('bt_lightning').setLevel(logging.ERROR)", None, "", ""),
        ("", None, "logging.getLogger('bt_lightning').setLevel(logging.ERROR)", ""),
        (CONFIGURE, None, "", "APP saves to /ck\n"),
        ("", None, CONFIGURE, "APP saves to /ck\n"),
    ],
    ids=["default", "variable", "level-before", "level-after", "app-before", "app-after"],
)
def test_a_line_is_seen_once_and_as_the_application_wants(before, level, after, expected):
    assert stderr_of(SAY.format(before=before, level=level, after=after)) == expected


def test_a_line_stands_above_a_bar_of_tqdm():
    said = stderr_of(
        """
        import logging
        from tqdm import tqdm
        from bt_lightning.session.visible_log import show_log
        show_log(None)
        with tqdm(total=10, desc="Epoch", ascii=True) as bar:
            bar.update(5)
            logging.getLogger("bt_lightning.session.any").info("saves to /ck")
        """
    )
    written = said.replace("\r", "\n").split("\n")
    assert "bt_lightning: saves to /ck" in written  # a line of its own


def test_it_goes_where_stderr_is_at_that_moment():
    said = stderr_of(
        """
        import contextlib, io, logging
        from bt_lightning.session.visible_log import show_log
        show_log(None)
        with contextlib.redirect_stderr(io.StringIO()) as other:
            logging.getLogger("bt_lightning.session.any").info("saves to /ck")
        assert other.getvalue() == "bt_lightning: saves to /ck\\n", other.getvalue()
        """
    )
    assert said == ""
