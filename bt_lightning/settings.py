"""Settings from environment variables, passed in as a mapping."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bt_lightning.errors import InvalidSettingError
from bt_lightning.glob_patterns import Patterns
from bt_lightning.metrics_target import NO_METRICS, MetricsTarget
from bt_lightning.path_layout import job_prefix, unique_name_of_path

if TYPE_CHECKING:
    from collections.abc import Mapping


LEAST_MB_S = 0.1
_TORCH_TRUE = frozenset({"1", "y", "yes", "true"})
DEFAULT_PROJECT = "default"
_MAX_NAME = 246
"""Characters of a directory's name in its job's name: with the hash it fits one path part."""
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
HOLD_MEMORY = timedelta(seconds=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where checkpoints are written and read, from the `BT_*` environment variables."""

    checkpoint_dir: str | None = None
    """`BT_CHECKPOINT_DIR`: the directory that checkpoints are written to."""
    load_dir: str | None = None
    """`BT_LOAD_CHECKPOINT_DIR`: folder of checkpoints of earlier jobs."""
    store_url: str | None = None
    """`BT_STORE_URL`: any fsspec URL; unset on Baseten, whose own process uploads."""
    project: str | None = None
    """`BT_TRAINING_PROJECT_NAME`, else `BT_TRAINING_PROJECT_ID`."""
    job: str | None = None
    """`BT_TRAINING_JOB_ID`."""
    fit_name: str | None = None
    """`BT_FIT_NAME`."""
    upload_mb_s: float | None = None
    """`BT_UPLOAD_MB_S`: limit of uploads in megabytes a second."""
    node_rank: int = 0
    """`BT_NODE_RANK`: rank of this node among those of the job."""
    hold_memory: timedelta = HOLD_MEMORY
    """`BT_HOLD_MEMORY_S`: how long a worker holds the newest image after a kill; 0: not at all."""
    grace: timedelta | None = None
    """`BT_GRACE_S`: time from SIGTERM until the platform kills the process; None: unknown."""
    volume_size_gib: float | None = None
    """`BT_VOLUME_SIZE_GIB`: largest size of the checkpoint directory; more than 0."""
    interval: Literal["auto"] | timedelta | None = None
    """`BT_SAVE_INTERVAL`: `auto`, or seconds between saves; None: only `ModelCheckpoint` saves."""
    save_at_end: bool = True
    """`BT_SAVE_AT_END`: 0 does not save the state that a fit ends with."""
    weights_only: bool | None = None
    """`BT_WEIGHTS_ONLY`: 0 lets a job unpickle objects in its own checkpoints; 1 refuses it."""
    files: Patterns = field(default_factory=Patterns)
    """`BT_SYNC_INCLUDE`, `BT_SYNC_EXCLUDE`: comma-separated patterns of the job files to upload."""
    log_level: str | None = None
    """`BT_LOG_LEVEL`: least level of the log lines of a training process; None: `INFO`."""
    metrics: MetricsTarget = NO_METRICS
    """`BT_METRICS_FILE`, `BT_METRICS_PORT`: where the numbers for Prometheus go."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Read the `BT_*` variables; an empty one counts as unset.

        Raises:
            InvalidSettingError: `BT_NODE_RANK` is no whole number of at least 0, `BT_GRACE_S` or
                `BT_SAVE_INTERVAL` no number of seconds above 0, `BT_VOLUME_SIZE_GIB` no number of
                GiB above 0, `BT_UPLOAD_MB_S` no number of at least 0.1, `BT_METRICS_PORT` no
                port, or `BT_SAVE_AT_END` or `BT_WEIGHTS_ONLY` neither 0 nor 1.
        """
        interval = environ.get("BT_SAVE_INTERVAL") or None
        return cls(
            checkpoint_dir=environ.get("BT_CHECKPOINT_DIR") or None,
            load_dir=environ.get("BT_LOAD_CHECKPOINT_DIR") or None,
            store_url=environ.get("BT_STORE_URL") or None,
            project=environ.get("BT_TRAINING_PROJECT_NAME")
            or environ.get("BT_TRAINING_PROJECT_ID")
            or None,
            job=environ.get("BT_TRAINING_JOB_ID") or None,
            fit_name=environ.get("BT_FIT_NAME") or None,
            upload_mb_s=_megabytes(environ.get("BT_UPLOAD_MB_S")),
            node_rank=whole_number(environ, "BT_NODE_RANK", 0),
            hold_memory=_held("BT_HOLD_MEMORY_S", environ.get("BT_HOLD_MEMORY_S") or None),
            grace=_seconds("BT_GRACE_S", environ.get("BT_GRACE_S") or None),
            volume_size_gib=_gib("BT_VOLUME_SIZE_GIB", environ.get("BT_VOLUME_SIZE_GIB") or None),
            interval="auto" if interval == "auto" else _seconds("BT_SAVE_INTERVAL", interval),
            save_at_end=_yes_or_no("BT_SAVE_AT_END", environ.get("BT_SAVE_AT_END") or "1") is True,
            weights_only=_yes_or_no("BT_WEIGHTS_ONLY", environ.get("BT_WEIGHTS_ONLY") or None),
            files=Patterns(
                _comma_list(environ.get("BT_SYNC_INCLUDE")),
                _comma_list(environ.get("BT_SYNC_EXCLUDE")),
            ),
            log_level=_level("BT_LOG_LEVEL", environ.get("BT_LOG_LEVEL") or None),
            metrics=MetricsTarget.from_environ(environ),
        )


def _seconds(name: str, text: str | None) -> timedelta | None:
    if text is None:
        return None
    try:
        found = timedelta(seconds=float(text))
    except (ValueError, OverflowError):
        found = timedelta(0)
    if found <= timedelta(0):
        msg = f"{name} is {text!r}, expected a number of seconds above 0"
        raise InvalidSettingError(msg)
    return found


def _held(name: str, text: str | None) -> timedelta:
    if text is not None and text.strip() in {"0", "0.0"}:
        return timedelta(0)
    return _seconds(name, text) or HOLD_MEMORY


def _level(name: str, text: str | None) -> str | None:
    if text is not None and text.upper() not in _LEVELS:
        msg = f"{name} is {text!r}, expected one of {', '.join(_LEVELS)}"
        raise InvalidSettingError(msg)
    return None if text is None else text.upper()


def whole_number(environ: Mapping[str, str], name: str, default: int) -> int:
    """The variable `name` as a whole number of at least 0; an empty one is unset.

    Raises:
        InvalidSettingError: it is something else.
    """
    text = environ.get(name) or str(default)
    if not (text.isascii() and text.isdigit()):
        msg = f"{name} is {text!r}, expected a whole number of at least 0"
        raise InvalidSettingError(msg)
    return int(text)


def _gib(name: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < math.inf:
        msg = f"{name} is {text!r}, expected a number of GiB above 0"
        raise InvalidSettingError(msg)
    return found


def _yes_or_no(name: str, text: str | None) -> bool | None:
    if text is None:
        return None
    if text.lower() in {"1", "true"}:
        return True
    if text.lower() in {"0", "false"}:
        return False
    msg = f"{name} is {text!r}, expected 0 or 1"
    raise InvalidSettingError(msg)


def torch_weights_only(environ: Mapping[str, str], *, given: bool | None) -> bool | None:
    """The effective `weights_only` of a torch load, by torch's own two environment variables.

    Source: `torch.load`.
    """
    if environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD") in _TORCH_TRUE:
        return True
    if given is None and environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD") in _TORCH_TRUE:
        return False
    return given


def _comma_list(text: str | None) -> tuple[str, ...]:
    return tuple(part for part in map(str.strip, (text or "").split(",")) if part)


def _megabytes(text: str | None) -> float | None:
    if not text:
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    least_rate("BT_UPLOAD_MB_S", rate)
    return rate


def least_rate(name: str, megabytes: float | None) -> None:
    """Raise `InvalidSettingError` for a rate so low that servers would close connections."""
    if megabytes is not None and not LEAST_MB_S <= megabytes < math.inf:
        msg = f"{name} is {megabytes:g}, expected megabytes a second of at least {LEAST_MB_S:g}"
        raise InvalidSettingError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The job of this run, which names its part of the store."""

    project: str
    job: str
    node_rank: int

    @property
    def prefix(self) -> str:
        """Key prefix in the store."""
        return job_prefix(self.project, self.job, self.node_rank)

    @classmethod
    def named(cls, settings: Settings, checkpoint_dir: str) -> Job:
        """The job that `settings` name; without a name, the one that older versions named so.

        The same path means the same job: for directories from before jobs had names of their own,
        and for runs that do not say what they train.
        """
        path = Path(os.path.normpath(Path(checkpoint_dir).absolute()))
        fallback = unique_name_of_path(os.fsencode(path), _MAX_NAME)
        return cls(
            project=settings.project or DEFAULT_PROJECT,
            job=settings.job or fallback,
            node_rank=settings.node_rank,
        )
