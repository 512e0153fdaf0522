"""Shows the package's log where the application configured none, as Lightning shows its own.

`logging.getLogger("bt_lightning").setLevel(...)`, or `BT_LOG_LEVEL`, makes it quiet; handlers of
the application replace ours.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, TextIO

from typing_extensions import override

from bt_lightning.session.manifest_facts import package_versions
from bt_lightning.session.run_lines import begin_line, process_differences, resume_line, start_line
from bt_lightning.store.interface import redact

if TYPE_CHECKING:
    from bt_lightning.restore.find_checkpoint import Search
    from bt_lightning.session.session_config import SessionConfig
    from bt_lightning.session.start_point import StartPoint

NAME = "bt_lightning"


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what `sys.stderr` is at that moment: progress bars and tests replace it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter(f"{NAME}: %(message)s"))

    @property
    def stream(self) -> TextIO:  # as of `logging.lastResort`
        return sys.stderr

    @override
    def emit(self, record: logging.LogRecord) -> None:
        if logging.getLogger().handlers:
            return  # configured since: the record is shown there
        bars = sys.modules.get("tqdm")
        if bars is None:
            super().emit(record)
            return
        with bars.tqdm.external_write_mode(file=sys.stderr):  # or the line ends behind a bar
            super().emit(record)


def show_log(level: str | None) -> None:
    """Called in a training process before its first line; `level`: `BT_LOG_LEVEL`. Idempotent."""
    logger = logging.getLogger(NAME)
    if level is not None:
        logger.setLevel(level)
    elif logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not logger.hasHandlers():
        logger.addHandler(_StderrHandler())


def tell_start(
    config: SessionConfig,
    start: StartPoint,
    found: Search | None,
    world_size: int,
    *,
    by_user: bool,
) -> None:
    """Rank 0, when it is decided: where this run saves, and what it goes on from.

    Args:
        config: of the session.
        start: the decision.
        found: by what search, if there was one.
        world_size: how many ranks there are.
        by_user: whether the script says what the run starts from.
    """
    log = logging.getLogger(__name__)
    log.info("%s", start_line(config))
    if by_user:
        return
    if start.path is None or found is None:
        log.info("%s", begin_line(config))
        return
    store = redact(config.store_url) if found.stored and config.store_url is not None else ""
    manifest = found.manifest
    others = process_differences(
        manifest.origin if manifest is not None else {}, package_versions(), world_size
    )
    log.info("%s", resume_line(start.path, store, manifest, others, warm=start.warm))
