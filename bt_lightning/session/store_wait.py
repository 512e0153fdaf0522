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
    from tqdm import tqdm

    with tqdm(bar_format="{bar:20} {desc}", leave=False, file=sys.stderr) as bar:
        while True:
            status = read_uploading(root)
            sends = status is not None and bool(status.checkpoint)
            bar.total = max(1, status.bytes_total) if status is not None and sends else 1
            bar.n = status.bytes_done if status is not None and sends else 0
            bar.set_description_str(wait_line(status, time.time(), drain_s))
            if over.wait(_DRAWN_S):
                return
