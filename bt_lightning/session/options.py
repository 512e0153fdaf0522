"""The options of a run: arguments that are checked at once and merged with the environment.

A new one is a field here, with default and check; an argument and a line of the docstring of
`BTLightning`, which a test compares with it; and a row of docs/reference/settings.md.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bt_lightning.errors import InvalidSettingError
from bt_lightning.glob_patterns import Patterns
from bt_lightning.localdir.job_id_file import own_job
from bt_lightning.path_layout import plain_folder
from bt_lightning.session import argument_checks
from bt_lightning.session.bt_and_evicted_paths import StorePaths
from bt_lightning.session.session_config import Resume, SessionConfig
from bt_lightning.settings import Job, Settings, least_rate, torch_weights_only
from bt_lightning.snapshot.save_record import Overlap, Policy, SnapshotOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


_GIB = 2**30


def _option(default: Any, check: Callable[[str, Any], Any], *, secret: bool = False) -> Any:
    """A field with its default; `check` gives the value that is used, or raises."""
    return field(default=default, repr=not secret, metadata={"check": check})


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


@dataclass(frozen=True, kw_only=True)
class Options:
    """The arguments of `BTLightning`, which documents them: types, defaults, checks, in order."""

    dir: str | os.PathLike[str] | None = _option(None, _maybe(argument_checks.path))
    store: str | None = _option(None, _maybe(argument_checks.path), secret=True)
    load_dir: str | os.PathLike[str] | None = _option(None, _maybe(argument_checks.path))
    resume: Resume = _option("auto", _among("auto", "require", "never", "weights"))
    strict: bool | None = _option(None, _maybe(argument_checks.flag))
    weights_only: bool | None = _option(None, _maybe(argument_checks.flag))
    exact: bool = _option(True, argument_checks.flag)
    resume_loggers: bool = _option(True, argument_checks.flag)
    on_error: Literal["raise", "warn"] = _option("raise", _among("raise", "warn"))
    drain_timeout: timedelta = _option(timedelta(seconds=120), argument_checks.duration)
    storage_options: dict[str, Any] | None = _option(
        None, _maybe(argument_checks.options), secret=True
    )
    upload_mb_s: float | None = _option(None, _maybe(_rate))
    content_md5: bool = _option(False, argument_checks.flag)
    project: str | None = _option(None, _maybe(argument_checks.text))
    job: str | None = _option(None, _maybe(argument_checks.text))
    fit_name: str | None = _option(None, _maybe(argument_checks.fit_name))
    snapshot: Policy = _option("auto", _among("auto", "lazy", "eager"))
    overlap: Overlap = _option("wait", _among("wait", "skip", "latest"))
    arenas: int = _option(1, _whole(1))
    arena_memory: int | None = _option(None, _maybe(_whole(0)))
    hold_memory: timedelta | None = _option(None, _maybe(argument_checks.duration_or_zero))
    grace: timedelta | None = _option(None, _maybe(argument_checks.duration))
    save_at_end: bool | None = _option(None, _maybe(argument_checks.flag))
    interval: Literal["auto"] | timedelta | None = _option(None, _maybe(_interval))
    failures_every: timedelta = _option(timedelta(days=1), argument_checks.duration)
    max_overhead: float = _option(0.05, argument_checks.fraction)
    volume_size_gib: float | None = _option(None, _maybe(argument_checks.gib))
    save_frozen: bool | None = _option(None, _maybe(argument_checks.flag))
    sync_files: bool = _option(True, argument_checks.flag)
    sync_include: list[str] | None = _option(None, _maybe(argument_checks.patterns))
    sync_exclude: list[str] | None = _option(None, _maybe(argument_checks.patterns))
    settings: Settings = field(default_factory=Settings, repr=False)
    """What the environment says of what the user left open."""

    @classmethod
    def of(cls, **given: Any) -> Options:
        """Options of the arguments as the user passed them.

        Raises:
            InvalidSettingError: for a value that cannot be used, or a name that is no option.
        """
        checks = {one.name: one.metadata["check"] for one in fields(cls) if one.metadata}
        unknown = sorted(given.keys() - checks.keys())
        if unknown:
            msg = f"{', '.join(unknown)}: no such option, expected {', '.join(checks)}"
            raise InvalidSettingError(msg)
        return cls(**{name: checks[name](name, value) for name, value in given.items()})

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
            hold_memory=settings.hold_memory if self.hold_memory is None else self.hold_memory,
            grace=self.grace if self.grace is not None else settings.grace,
            volume_size_gib=(
                self.volume_size_gib
                if self.volume_size_gib is not None
                else settings.volume_size_gib
            ),
            save_at_end=settings.save_at_end if self.save_at_end is None else self.save_at_end,
            interval=self.interval if self.interval is not None else settings.interval,
            upload_mb_s=settings.upload_mb_s if self.upload_mb_s is None else self.upload_mb_s,
            fit_name=self._fit_name(settings),
            weights_only=torch_weights_only(environ, given=self.weights_only),
            settings=settings,
        )

    def _fit_name(self, settings: Settings) -> str | None:
        if self.fit_name is not None or settings.fit_name is None:
            return self.fit_name
        return argument_checks.fit_name("BT_FIT_NAME", settings.fit_name)

    def source(self, root: Path) -> StorePaths:
        """The store that paths lead to, those under `root`, absolute, included."""
        options = dict(self.storage_options or {})
        return StorePaths(self.store, options, root=root, prefix=self._job(root).prefix)

    def _job(self, root: Path) -> Job:
        named = self.job is not None or self.settings.job is not None
        noted = None if named else own_job(self.settings, root)
        job = noted or Job.named(self.settings, str(root))
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
            job_known=(self.job or self.settings.job or own_job(self.settings, root)) is not None,
            upload_mb_s=self.upload_mb_s,
            content_md5=self.content_md5,
            resume=self.resume,
            weights_only=self.weights_only,
            drain_s=self.drain_timeout.total_seconds(),
            hold_s=(self.hold_memory or timedelta(0)).total_seconds(),
            budget=int(budget * _GIB) if budget is not None else None,
            files=self.files,
            log_level=self.settings.log_level,
            metrics=self.settings.metrics,
        )
