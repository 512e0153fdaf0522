"""What a run says of itself, a line each: what it saves where, what it resumes, what it leaves.

Pure: facts in, text out. No line has a secret: URLs come redacted, and of values that differ
only numbers and versions are named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bt_lightning.human_units import human_duration, human_size
from bt_lightning.settings import DEFAULT_PROJECT
from bt_lightning.store.interface import redact

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bt_lightning.localdir.upload_status import Uploading
    from bt_lightning.manifest import Manifest
    from bt_lightning.session.session_config import SessionConfig

_MOST_NAMED = 5
"""Differences that a line names; the others are counted."""


def start_line(config: SessionConfig) -> str:
    """Where a run saves."""
    if config.store_url is None:
        return f"saves to {config.root}"
    job = f"job {config.job.job} of project {config.job.project}"
    return f"saves to {config.root}, and sends to {redact(config.store_url)}, {job}"


def begin_line(config: SessionConfig) -> str:
    """That a run begins at its first step, and why."""
    why = "resume='never'" if config.resume == "never" else "there is nothing to resume from"
    return f"begins at step 0: {why}"


def resume_line(
    path: str,
    store: str,
    manifest: Manifest | None,
    differences: Mapping[str, tuple[object, object]],
    *,
    warm: bool,
) -> str:
    """What a run goes on from.

    Args:
        path: of the checkpoint.
        store: URL, without secrets, of the store that it came from; empty if it was on the disk.
        manifest: None of what has none.
        differences: name -> (at the save, here).
        warm: only the weights are taken.
    """
    verb = "begins at step 0 with the weights of" if warm else "resumes"
    name = path
    if manifest is not None:
        moment = manifest.created.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        name = f"{manifest.checkpoint_id}, step {manifest.step}, of {moment}"
        name += f", from {store or path}"
        host = manifest.origin.get("host")
        name += f", saved on {host}" if isinstance(host, str) else ""
    if not differences:
        return f"{verb} {name}"
    named = [f"{key} {then} -> {now}" for key, (then, now) in differences.items()]
    more = [f"{len(named) - _MOST_NAMED} more"] if len(named) > _MOST_NAMED else []
    count = f"{len(named)} difference{'s' * (len(named) > 1)}"
    return f"{verb} {name}; {count}: {', '.join(named[:_MOST_NAMED] + more)}"


def changed_numbers(
    then: Mapping[str, Any], now: Mapping[str, Any]
) -> dict[str, tuple[object, object]]:
    """Numbers of both that differ: name -> (then, now)."""
    return {
        key: (then[key], now[key])
        for key in then
        if key in now and _is_number(then[key]) and _is_number(now[key]) and then[key] != now[key]
    }


def process_differences(
    origin: Mapping[str, Any], versions: Mapping[str, str], world_size: int
) -> dict[str, tuple[object, object]]:
    """What of the process that saved is another here. `origin`: of a manifest."""
    said = origin.get("versions")
    found: dict[str, tuple[object, object]] = {}
    for package, version in (said if isinstance(said, dict) else {}).items():
        here = versions.get(package)
        if here is not None and here != version and isinstance(version, str):
            found[str(package)] = (version, here)
    ranks = origin.get("world_size")
    if type(ranks) is int and ranks != world_size:
        found["ranks"] = (ranks, world_size)
    return found


def wait_line(status: Uploading | None, now: float, drain_s: float) -> str:
    """What is waited for at the end of a run. `now`: seconds since the epoch."""
    limit = f"at most {drain_s:,.0f} s (drain_timeout)"
    if status is None:
        return f"waits for the store, {limit}"
    if status.error:
        return f"waits for the store, {limit}; the last try failed: {status.error}"
    more = f", then {status.waiting} more" if status.waiting else ""
    if not status.checkpoint:
        return f"waits for the store{more}, {limit}"
    line = f"waits for the store: {status.checkpoint}, {human_size(status.bytes_done)} of"
    line += f" {human_size(status.bytes_total)}"
    took = now - status.began
    if status.bytes_done and took > 0:
        rate = status.bytes_done / took
        left = (status.bytes_total - status.bytes_done) / rate
        line += f", {human_size(rate)}/s, {human_duration(left)} left"
    return f"{line}{more}; {limit}"


def end_line(config: SessionConfig, *, saved: int, kept: int, waits: bool) -> str:
    """What a run leaves behind, when all of it is where it belongs.

    `waits`: `bt-lightning run` sends what is not in the store.
    """
    if not saved:
        return "saved no checkpoint"
    line = f"saved {saved} checkpoint{'s' * (saved > 1)}, keeps {kept}"
    look = "Look: bt-lightning checkpoints list"
    if config.store_url is None:
        return f"{line}, in {config.root}. {look} --dir {config.root}"
    store = redact(config.store_url)
    if waits:
        return f"{line}; bt-lightning run sends them to {store}"
    project = f" --project {config.job.project}" * (config.job.project != DEFAULT_PROJECT)
    return f"{line}, all in {store}. {look} --store {store}{project} --job-id {config.job.job}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)
