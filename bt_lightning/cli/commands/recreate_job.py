"""The command that starts a job again, as a new job that begins at the beginning."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bt_lightning.cli.commands.protect_delete import confirm, yes_option
from bt_lightning.cli.commands.run import run
from bt_lightning.cli.job_place import JobPlace
from bt_lightning.cli.target_options import directory_option, project_option, store_option

if TYPE_CHECKING:
    from bt_lightning.job_record import JobRecord


@click.command("recreate")
@click.argument("job_id", required=False)
@store_option
@project_option
@directory_option
@click.option("--new-job-id", metavar="ID", help="Id of the new job; by default one is made.")
@click.option(
    "--new-dir",
    metavar="DIRECTORY",
    help="Its checkpoint directory; by default beside that of the job.",
)
@click.option(
    "--working-directory",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Where to start it; by default where the job was started.",
)
@click.option("--dry-run", is_flag=True, help="Print the command line; start nothing.")
@yes_option
def recreate_job(
    job_id: str | None,
    store: str | None,
    project: str | None,
    directory: str | None,
    new_job_id: str | None,
    new_dir: str | None,
    working_directory: Path | None,
    dry_run: bool,
    yes: bool,
) -> None:
    """Start a job again on this machine, as a new job: the same command and options.

    The new job has an id of its own and begins at the beginning; to go on with the old one, run it
    with its --job-id. Its code is that of the directory now, and its environment is this one. As
    anybody who may write to the store may have written the command, it is shown and asked about.
    """
    from bt_lightning.cli.render.text import printable
    from bt_lightning.errors import CheckpointNotFoundError, InvalidSettingError

    place = JobPlace(job_id, store, project, directory)
    record = place.record()
    if record is None:
        raise CheckpointNotFoundError(place.missing("record of a runner"))
    if not record.arguments or record.withheld:
        why = "had a secret in it, which is not kept" if record.withheld else "is not known"
        msg = (
            f"the command of the job {place.job} {why}, so it cannot be started again from its"
            " record: start it with `bt-lightning run`"
        )
        raise InvalidSettingError(msg)
    if store is None and record.checkpoint_sync_status is not None:
        msg = f"the job {place.job} had a store, and none is named: --store or BT_STORE_URL"
        raise InvalidSettingError(msg)
    new_id = _new_id(record, new_job_id)
    words = [
        "--project",
        record.project,
        "--job-id",
        new_id,
        "--dir",
        _directory(record, new_id, new_dir),
    ]
    if record.checkpoint_sync_status is not None:
        words += ["--store", _from_anywhere(str(store))]
    where = working_directory or Path(record.directory)
    if not where.is_dir():
        msg = (
            f"the job {place.job} was started in {where}, which is not on this machine: name the"
            " folder of its code with --working-directory"
        )
        raise InvalidSettingError(msg)
    line = shlex.join(["bt-lightning", "run", *_shown(words), *record.arguments])
    click.echo(printable(f"in {where}: {line}"), err=not dry_run)
    if dry_run:
        return
    confirm("Start it?", "this runs that command", yes=yes)
    os.chdir(where)
    with run.make_context("run", [*words, *record.arguments]) as context:
        run.invoke(context)


def _new_id(record: JobRecord, named: str | None) -> str:
    from bt_lightning.errors import InvalidSettingError
    from bt_lightning.runtime.job_plan import new_job_id

    if named == record.job_id:
        msg = f"{named} is the job itself: `bt-lightning run --job-id {named}` goes on with it"
        raise InvalidSettingError(msg)
    if named is None and record.group_size > 1:
        msg = f"the job has {record.group_size} nodes: name one --new-job-id on each of them"
        raise InvalidSettingError(msg)
    return named or new_job_id()


def _directory(record: JobRecord, new_id: str, named: str | None) -> str:
    """A checkpoint directory without the checkpoints of the job, from which it would resume."""
    from bt_lightning.errors import InvalidSettingError
    from bt_lightning.localdir.job_record_file import read_local
    from bt_lightning.path_layout import slug

    if named is not None:
        return str(Path(named).absolute())
    if not record.checkpoint_dir:
        return f"bt_checkpoints/{slug(new_id)}"
    old = Path(record.checkpoint_dir)
    if old.name == slug(record.job_id):
        return str(old.with_name(slug(new_id)))
    if read_local(old) is None:
        return str(old)
    msg = (
        f"{old} has the checkpoints of the job {record.job_id}, and the new one would resume from"
        " them: name another directory with --new-dir"
    )
    raise InvalidSettingError(msg)


def _from_anywhere(store: str) -> str:
    """The store's URL; a plain path is made absolute, as the job may start elsewhere."""
    from bt_lightning.path_layout import plain_folder

    return store if "://" in store or plain_folder(store) is None else str(Path.cwd() / store)


def _shown(words: list[str]) -> list[str]:
    from bt_lightning.store.interface import redact

    return [redact(word) for word in words]
