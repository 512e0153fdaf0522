"""The configuration of a session, with all defaults filled in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from bt_lightning.metrics_target import NO_METRICS

if TYPE_CHECKING:
    from pathlib import Path

    from bt_lightning.glob_patterns import Patterns
    from bt_lightning.metrics_target import MetricsTarget
    from bt_lightning.session.parts_of_run import PartsOfRun
    from bt_lightning.settings import Job

Resume = Literal["auto", "require", "never", "weights"]


@dataclass(frozen=True, kw_only=True)
class SessionConfig:
    """The configuration of a session; paths are absolute, defaults are filled in."""

    root: Path
    load_dir: Path | None
    store_url: str | None = field(repr=False)
    storage_options: dict[str, object] = field(default_factory=dict, repr=False)
    upload_mb_s: float | None
    content_md5: bool
    job: Job
    job_known: bool = True
    """Whether somebody gave the job its name, or `root` says which job it belongs to."""
    job_is_new: bool = False
    """Whether the name was made for this run, since `root` is new."""
    resume: Resume
    weights_only: bool | None
    drain_s: float
    hold_s: float = 0.0
    """As `WorkerConfig.hold_s`."""
    budget: int | None = None
    """Maximum bytes of `root`; None for no limit."""
    files: Patterns | None = None
    """Patterns of files outside checkpoints that are uploaded as well."""
    log_level: str | None = None
    """As `Settings.log_level`."""
    metrics: MetricsTarget = NO_METRICS
    """As `Settings.metrics`."""
    parts: PartsOfRun | None = None
    """How the ranks write parts of tensors, if they do."""
