"""Says what a run waits for at its end: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from typing import TYPE_CHECKING

from bt_lightning.localdir.upload_status import read_uploading
from bt_lightning.session.run_lines import wait_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bt_lightning.session.session_config import SessionConfig

log = logging.getLogger(__name__)

_QUIET_S, _LINE_S, _DRAWN_S = 2.0, 10.0, 0.5
"""Before the first word; between two lines; between two drawings of the bar."""


@contextlib.contextmanager
def told_of_wait(config: SessionConfig) -> Iterator[None]:
    """On the rank that writes, around the wait for its worker; says nothing without a store."""
    if config.store_url is None:
        yield
        return
    root, drain_s, over = config.root, config.drain_s, threading.Event()
    tell = _draw if sys.stderr.isatty() and log.isEnabledFor(logging.INFO) else _say
    thread = threading.Thread(target=tell, args=(root, drain_s, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _say(root: Path, drain_s: float, over: threading.Event) -> None:
    pause_s = _QUIET_S
    while not over.wait(pause_s):
        log.info("%s", wait_line(read_uploading(root), time.time(), drain_s))
        pause_s = _LINE_S


def _draw(root: Path, drain_s: float, over: threading.Event) -> None:
    if over.wait(_QUIET_S):
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    line = TextColumn("{task.description}", markup=False, table_column=Column(ratio=1))
    console = Console(stderr=True)
    with Progress(line, BarColumn(20), console=console, transient=True, expand=True) as drawn:
        task = drawn.add_task("", total=None)
        while True:
            status = read_uploading(root)
            total = status.bytes_total if status is not None and status.checkpoint else None
            done = status.bytes_done if status is not None else 0
            text = wait_line(status, time.time(), drain_s)
            drawn.update(task, description=text, total=total, completed=done)
            if over.wait(_DRAWN_S):
                return
