"""What a user asks of `BTLightning`: checked at once, merged with the environment, made a session.

An argument is a field here, named as the argument, and a line of `BTLightning.__init__`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bt_lightning.glob_patterns import Patterns
from bt_lightning.layout import plain_folder
from bt_lightning.session import argument_checks
from bt_lightning.session.bt_and_evicted_paths import StorePaths
from bt_lightning.session.session_config import Resume, SessionConfig
from bt_lightning.settings import Job, Settings, least_rate, torch_weights_only
from bt_lightning.snapshot.save_record import Overlap, Policy, SnapshotOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import timedelta


_GIB = 2**30


def _maybe(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    """None says nothing; anything else is checked."""
    return lambda name, value: None if value is None else check(name, value)


def _among(*choices: str) -> Callable[[str, Any], Any]:
    return lambda name, value: argument_checks.one_of(name, value, choices)


def _whole(least: int) -> Callable[[str, Any], int]:
    return lambda name, value: argument_checks.whole(name, value, least)


def _interval(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return argument_checks.one_of(name, value, ("auto",))
    return argument_checks.duration(name, value)


def _rate(name: str, value: Any) -> float:
    found = argument_checks.number(name, value, "a number of megabytes a second")
    least_rate(name, found)
    return found


_CHECKED: dict[str, Callable[[str, Any], Any]] = {
    "dir": _maybe(argument_checks.path),
    "store": _maybe(argument_checks.path),
    "load_dir": _maybe(argument_checks.path),
    "resume": _among("auto", "require", "never", "weights"),
    "strict": _maybe(argument_checks.flag),
    "weights_only": _maybe(argument_checks.flag),
    "exact": argument_checks.flag,
    "on_error": _among("raise", "warn"),
    "drain_timeout": argument_checks.duration,
    "storage_options": _maybe(argument_checks.options),
    "upload_mb_s": _maybe(_rate),
    "content_md5": argument_checks.flag,
    "project": _maybe(argument_checks.text),
    "job": _maybe(argument_checks.text),
    "snapshot": _among("auto", "lazy", "eager"),
    "overlap": _among("wait", "skip", "latest"),
    "arenas": _whole(1),
    "arena_memory": _maybe(_whole(0)),
    "grace": _maybe(argument_checks.duration),
    "interval": _maybe(_interval),
    "failures_every": argument_checks.duration,
    "max_overhead": argument_checks.fraction,
    "volume_size_gib": _maybe(argument_checks.gib),
    "sync_files": argument_checks.flag,
    "sync_include": _maybe(argument_checks.patterns),
    "sync_exclude": _maybe(argument_checks.patterns),
}
"""Argument -> what its value becomes."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The arguments of `BTLightning`, which documents them."""

    dir: str | os.PathLike[str] | None
    store: str | None = field(repr=False)
    load_dir: str | os.PathLike[str] | None
    resume: Resume
    strict: bool | None
    weights_only: bool | None
    exact: bool
    on_error: Literal["raise", "warn"]
    drain_timeout: timedelta
    storage_options: dict[str, Any] | None = field(repr=False)
    upload_mb_s: float | None
    content_md5: bool
    project: str | None
    job: str | None
    snapshot: Policy
    overlap: Overlap
    arenas: int
    arena_memory: int | None
    grace: timedelta | None
    interval: Literal["auto"] | timedelta | None
    failures_every: timedelta
    max_overhead: float
    volume_size_gib: float | None
    sync_files: bool
    sync_include: list[str] | None
    sync_exclude: list[str] | None
    settings: Settings = field(default_factory=Settings, repr=False)
    """What the environment says of what the user left open."""

    @classmethod
    def of(cls, **given: Any) -> Options:
        """Options of the arguments as the user passed them.

        Raises:
            InvalidSettingError: for a value that cannot be used.
        """
        return cls(**{name: _CHECKED[name](name, value) for name, value in given.items()})

    def merged(self, environ: Mapping[str, str]) -> Options:
        """These, with what the environment says wherever the user said nothing.

        Raises:
            InvalidSettingError: a variable or the store's URL cannot be used.
        """
        settings = Settings.from_environ(environ)
        store = self.store or settings.store_url
        if store is not None:
            plain_folder(store)  # or a forgotten scheme would be found out by a process later
        return replace(
            self,
            dir=os.fspath(self.dir) if self.dir is not None else settings.checkpoint_dir,
            store=store,
            load_dir=os.fspath(self.load_dir) if self.load_dir is not None else settings.load_dir,
            storage_options=dict(self.storage_options or {}),
            grace=self.grace if self.grace is not None else settings.grace,
            volume_size_gib=(
                self.volume_size_gib
                if self.volume_size_gib is not None
                else settings.volume_size_gib
            ),
            interval=self.interval if self.interval is not None else settings.interval,
            upload_mb_s=settings.upload_mb_s if self.upload_mb_s is None else self.upload_mb_s,
            weights_only=torch_weights_only(environ, given=self.weights_only),
            settings=settings,
        )

    def source(self, root: Path) -> StorePaths:
        """The store that paths lead to, those under `root`, absolute, included."""
        options = dict(self.storage_options or {})
        return StorePaths(self.store, options, root=root, prefix=self._job(root).prefix)

    def _job(self, root: Path) -> Job:
        job = Job.named(self.settings, str(root))
        return replace(job, project=self.project or job.project, job=self.job or job.job)

    @property
    def own_weights_only(self) -> bool | None:
        """`weights_only` for the checkpoints of this very job."""
        return self.settings.weights_only if self.weights_only is None else self.weights_only

    @property
    def snapshots(self) -> SnapshotOptions:
        """How saves are taken."""
        return SnapshotOptions(
            snapshot=self.snapshot,
            overlap=self.overlap,
            arenas=self.arenas,
            arena_memory=self.arena_memory,
        )

    @property
    def files(self) -> Patterns | None:
        """Which files that belong to no checkpoint are sent to the store; None for none."""
        if not self.sync_files:
            return None
        include, exclude, own = self.sync_include, self.sync_exclude, self.settings.files
        return Patterns(
            own.include if include is None else tuple(include),
            own.exclude if exclude is None else tuple(exclude),
        )

    def session(self, root: Path) -> SessionConfig:
        """What the session of a fit that saves to `root`, absolute, is opened with."""
        budget = self.volume_size_gib
        return SessionConfig(
            root=root,
            load_dir=Path(self.load_dir).expanduser().resolve() if self.load_dir else None,
            store_url=self.store,
            storage_options=dict(self.storage_options or {}),
            job=self._job(root),
            upload_mb_s=self.upload_mb_s,
            content_md5=self.content_md5,
            resume=self.resume,
            weights_only=self.weights_only,
            drain_s=self.drain_timeout.total_seconds(),
            budget=int(budget * _GIB) if budget is not None else None,
            files=self.files,
        )
