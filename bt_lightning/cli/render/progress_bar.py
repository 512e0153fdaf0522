"""The progress bar on stderr: bytes, rate and time left of a transfer."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that any thread calls with bytes done; draws only on a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from bt_lightning.cli.render.text import printable

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    lock = threading.Lock()
    with Progress(*columns, console=console, disable=not console.is_terminal) as drawn:
        task = drawn.add_task(printable(title).replace("[", "\\["), total=total)

        def on_bytes(count: int) -> None:
            with lock:
                drawn.advance(task, count)

        yield on_bytes
