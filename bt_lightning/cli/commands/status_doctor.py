"""The commands for a run and its environment: status, doctor."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from bt_lightning.cli.target_options import (
    directory_option,
    notice,
    store_option,
    text_or_json_option,
)

if TYPE_CHECKING:
    from bt_lightning.manage.doctor import Finding
    from bt_lightning.manage.find_target import Target
    from bt_lightning.manage.run_history import RunHistory
    from bt_lightning.manage.run_status import Status, Upload

_BAR = 20
"""Characters of the bar of an upload."""


@click.command()
@directory_option
@click.option(
    "--watch",
    is_flag=True,
    help="Refresh once a second, until Ctrl-C; waits for a run to begin.",
)
@text_or_json_option
def status(directory: str | None, watch: bool, output_format: str) -> None:
    """Show what the run of a directory is doing: its saves, its disk, its uploads."""
    from bt_lightning.cli.render.table_csv_json import as_json
    from bt_lightning.manage.find_target import Target, directory_named
    from bt_lightning.manage.run_status import run_status

    target = Target(directory=directory)
    if watch and output_format == "json":
        msg = "--watch is for people: ask for JSON as often as you like"
        raise click.UsageError(msg)
    if watch:
        _watch(lambda: _seen(target))
        return
    seen = run_status(directory_named(target, notice))
    if output_format == "json":
        as_json(_as_json(seen))
    else:
        click.echo(screen(seen))


@click.command()
@directory_option
@store_option
@text_or_json_option
def doctor(directory: str | None, store: str | None, output_format: str) -> None:
    """Test all that a save needs, on the disk and in the store, and suggest fixes.

    Writes and deletes a few files of its own, of 64 MB at most. Exits with 1 if something that a
    save needs does not work.
    """
    from bt_lightning.cli.render.table_csv_json import as_json
    from bt_lightning.cli.render.text import printable
    from bt_lightning.manage.doctor import examine

    findings: list[Finding] = []
    for finding in examine(directory, store):
        findings.append(finding)
        if output_format == "text":
            colour = {"ok": "green", "warning": "yellow", "failed": "red"}[finding.result]
            said = f"{finding.name}: {printable(finding.says)}"
            click.echo(click.style(finding.result.rjust(7), fg=colour) + f"  {said}")
            if finding.remedy:
                click.echo(f"{'':7}  -> {printable(finding.remedy)}")
    failed = sum(finding.result == "failed" for finding in findings)
    if output_format == "json":
        as_json({"failed": failed, "findings": [asdict(finding) for finding in findings]})
    elif not failed:
        click.echo("All that a save needs works.")
    if failed:
        sys.exit(1)


def screen(seen: Status) -> str:
    """The status of a run as lines of text."""
    from bt_lightning.cli.render.text import printable
    from bt_lightning.human_units import human_duration, human_size

    lines = [f"Directory   {seen.directory}"]
    last = seen.last_save
    if last is None:
        lines.append("Training    nothing saved yet")
    else:
        ago = human_duration(max(0.0, seen.at - last["at"]))
        lines.append(
            f"Training    step {last.get('step', '?')}, saved {ago} ago; {seen.saves} saves took"
            f" {seen.stall_s:.2f} s of training"
            + (f", {seen.skipped} gave way" if seen.skipped else "")
        )
    if seen.history is not None and seen.history.runs:
        lines.append(f"Runs        {_runs(seen.history)}")
    if seen.staged:
        lines.append(f"Memory      {seen.staged} on the way to the disk")
    lines += [
        f"Memory      {held.checkpoint} of the killed run, {human_size(held.size)}, for"
        f" {human_duration(held.left_s)}: the next start reads it"
        for held in seen.held
    ]
    lines.append(
        f"Disk        {seen.checkpoints} checkpoints, {human_size(seen.disk_bytes)}"
        + (f", the newest {seen.newest}" if seen.newest else "")
        + (f", {seen.damaged} damaged" if seen.damaged else "")
        + f"; {human_size(seen.disk_free)} free"
    )
    for one in seen.gathering:
        missing = ", ".join(map(str, one.missing))
        more = ", ..." if len(one.missing) < one.ranks - one.parts else ""
        lines.append(
            f"Gathering   {one.checkpoint or 'a save'}: {one.parts} of {one.ranks} parts"
            + (f"; missing ranks {missing}{more}" if missing else "")
        )
    if seen.given_up:
        lines.append(f"Given up    the newest sharded save: {seen.given_up}")
    upload = seen.upload
    if not seen.uploads:
        lines.append("Store       nothing is uploaded from here by bt_lightning")
    elif upload is not None:
        left = "" if upload.left_s is None else f", {human_duration(upload.left_s)} left"
        lines.append(
            f"Store       uploading {upload.checkpoint}: {_bar(upload)}"
            f" {human_size(upload.bytes_done)} of {human_size(upload.bytes_total)},"
            f" {human_size(upload.rate)}/s{left}"
        )
        lines.append(f"Outbox      {seen.waiting} more")
    elif seen.error:
        lines.append(f"Store       the last upload failed: {seen.error}")
        lines.append(f"Outbox      {seen.waiting}; the run tries again, or the next one does")
    else:
        lines.append(f"Store       {seen.published} uploads done; nothing is being uploaded")
    return "\n".join(printable(line) for line in lines)


def _bar(upload: Upload) -> str:
    """`[#####...............]  25 %`."""
    done = min(1.0, upload.bytes_done / upload.bytes_total) if upload.bytes_total else 1.0
    return f"[{'#' * int(done * _BAR):.<{_BAR}}] {done:4.0%}".replace("%", " %")


def _runs(told: RunHistory) -> str:
    """Runs, restarts and lost work, as far as the events of the directory go."""
    lost = f", {told.redone_steps} steps done again" if told.redone_steps else ""
    failed = f"; last failure: {told.failures[-1][1]}" if told.failures else ""
    return f"{len(told.runs)} began here, {told.restarts} restarts{lost}{failed}"


def _as_json(seen: Status) -> dict[str, Any]:
    said, told = asdict(replace(seen, history=None)), seen.history
    del said["history"]
    if told is not None and told.known:
        said["runs"] = len(told.runs)
        said["restarts"], said["redone_steps"] = told.restarts, told.redone_steps
        said["failures"] = [{"at": at, "text": text} for at, text in told.failures]
    if seen.upload is not None:
        said["upload"].update(rate=seen.upload.rate, left_s=seen.upload.left_s)
    return said


def _seen(target: Target) -> str:
    """The status as lines; before anything of a run is there, that it is waited for."""
    from bt_lightning.cli.render.text import printable
    from bt_lightning.errors import InvalidSettingError
    from bt_lightning.manage.default_directory import DEFAULT_DIRECTORY
    from bt_lightning.manage.find_target import directory_named
    from bt_lightning.manage.run_status import run_status

    try:
        return screen(run_status(directory_named(target, lambda _: None)))
    except (InvalidSettingError, FileNotFoundError):  # it may go at any time, too
        where = target.directory or f"./{DEFAULT_DIRECTORY}"
        return printable(f"Waiting for a run to begin in {where}")


def _watch(draw: Any) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(Text(draw()), console=Console(), auto_refresh=False) as live:
        while True:
            time.sleep(1)
            live.update(Text(draw()), refresh=True)
