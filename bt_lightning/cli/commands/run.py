"""The command `run`: what Baseten does around a training script, on this machine."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from bt_lightning.cli.target_options import project_option, store_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bt_lightning.runtime.job_spec_and_environment import JobSpec

_PLACES = frozenset({"job_id", "store", "directory", "project"})
_AFTER_DASHES = "bt_lightning.after_dashes"


class _Run(click.Command):
    """Records whether `--` was given: without it, a single word is a config file."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_AFTER_DASHES] = "--" in args
        return super().parse_args(ctx, args)


@click.command(
    cls=_Run, context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False}
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="CONFIG.py | -- COMMAND...")
@project_option
@click.option(
    "--job-id",
    help="The job; one that ran before is continued. By default a new one."
    "  [env: BT_TRAINING_JOB_ID]",
)
@click.option("--job-name", help="Name for people.  [env: BT_TRAINING_JOB_NAME]")
@store_option
@click.option(
    "--dir",
    "directory",
    help="Checkpoint directory; by default bt_checkpoints/<job>.  [env: BT_CHECKPOINT_DIR]",
)
@click.option(
    "--load",
    multiple=True,
    metavar="REF",
    help="Checkpoint to download before the command: latest, JOB, JOB/CHECKPOINT or bt://...;"
    " may be repeated.",
)
@click.option("--load-dir", help="Directory for them.  [env: BT_LOAD_CHECKPOINT_DIR]")
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Restarts after failures; the command sees BT_RETRY_COUNT.",
)
@click.option(
    "--preemption-code",
    "codes",
    type=click.IntRange(1, 255),
    multiple=True,
    default=(143,),
    show_default=True,
    help="Exit codes that are no failure: restart at once, without limit.",
)
@click.option("--elastic", is_flag=True, help="Start COMMAND by torchrun, on every node.")
@click.option(
    "--nproc-per-node",
    "processes",
    type=click.IntRange(min=1),
    help="Processes with --elastic; by default one for each GPU.",
)
@click.option(
    "--nnodes",
    metavar="MIN:MAX",
    help="With --elastic, an attempt may have fewer nodes than MAX: MIN are enough. Without it, all"
    " of BT_GROUP_SIZE.",
)
@click.option(
    "--join-wait",
    "join_wait_s",
    type=click.FloatRange(min=1),
    help="Seconds that it waits for more than MIN; by default 30.",
)
@click.option(
    "--volume-size-gib",
    type=click.FloatRange(min=0, min_open=True),
    help="Largest size of the checkpoint directory.  [env: BT_VOLUME_SIZE_GIB]",
)
@click.option(
    "--interval",
    metavar="auto|SECONDS",
    help="Interval at which Trainers also save by themselves.  [env: BT_SAVE_INTERVAL]",
)
@click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds between SIGTERM and SIGKILL on this platform.  [env: BT_GRACE_S]",
)
@click.option(
    "--logs/--no-logs",
    default=True,
    show_default=True,
    help="Send what the command prints to the store, for `jobs logs`.",
)
@click.option(
    "--trust-checkpoints",
    "trust",
    is_flag=True,
    help="Let restarts unpickle objects in the job's own checkpoints.  [env: BT_WEIGHTS_ONLY=0]",
)
@click.option(
    "--drain-timeout",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    help="Seconds that the end of the job waits for the store.",
)
@click.pass_context
def run(ctx: click.Context, /, words: tuple[str, ...], **options: Any) -> None:
    """Run a training job: its checkpoints are saved, uploaded, and resumed by the next start.

    CONFIG.py is the file that `truss train push` takes. A COMMAND runs as it is:

      bt-lightning run --store s3://bucket/runs --job-id demo --retries 3 -- python train.py

    Every Lightning Trainer in it gets the callback BTLightning, without a change of the script, and
    all files below $BT_CHECKPOINT_DIR are uploaded. Signals are forwarded, output is unchanged. The
    exit code is that of the command; 25 if that is 0 and not everything reached the store: the next
    start of the same job uploads it. 31: another run has the job.
    """
    from bt_lightning.errors import InvalidSettingError
    from bt_lightning.runtime.job_resources import JobReporter
    from bt_lightning.runtime.restart_policy import RestartPolicy
    from bt_lightning.runtime.run_job import run_job

    if not words:
        msg = "nothing to run: expected a CONFIG.py, or -- and a command"
        raise InvalidSettingError(msg)
    retries, codes = options.pop("retries"), frozenset(options.pop("codes"))
    drain_s = options.pop("drain_timeout")
    spec = _recorded(_spec(words, options, is_command=ctx.meta[_AFTER_DASHES]), ctx, words)
    store = f", store {_shown(spec.store_url)}" if spec.store_url else ", no store"
    folder = f", checkpoints in {spec.checkpoint_dir}" if spec.checkpoint_dir else ""
    _say(f"job {spec.job_id} of {spec.project}{folder}{store}")
    if spec.checkpoint_dir is None:
        _warn("checkpointing_config.enabled is False: nothing is saved or sent")
    from bt_lightning.cli.render.progress_bar import progress

    reporter = JobReporter(say=_say, warn=_warn, progress=progress)
    policy = RestartPolicy(retries, codes)
    sys.exit(run_job(spec, policy, dict(os.environ), reporter, drain_s=drain_s))


def _spec(words: Sequence[str], options: dict[str, Any], *, is_command: bool) -> JobSpec:
    from pathlib import Path

    from bt_lightning.runtime.job_plan import CommandOptions, plan_command, plan_project
    from bt_lightning.runtime.machine_info import this_machine

    command_options = CommandOptions(**{**options, "load": tuple(options["load"])})
    machine = this_machine(os.environ)
    if is_command or len(words) > 1:
        return plan_command(words, command_options, os.environ, machine)
    from bt_lightning import load_config
    from bt_lightning.errors import InvalidSettingError

    config = Path(words[0]).absolute()
    try:
        project = load_config(config)
    except InvalidSettingError as error:
        msg = f"{error}. To run a program that is no config: bt-lightning run -- python {words[0]}"
        raise InvalidSettingError(msg) from error
    return plan_project(project, config.parent, command_options, os.environ, machine)


def _recorded(spec: JobSpec, ctx: click.Context, words: Sequence[str]) -> JobSpec:
    """`spec` with the arguments that start the same once more, for its record; without secrets."""
    from dataclasses import replace

    from bt_lightning.store.secrets import hide, log_secrets

    secrets = log_secrets({**os.environ, **spec.variables}, spec.secrets)
    dashes = ["--"] if ctx.meta[_AFTER_DASHES] or len(words) > 1 else []
    given = [*_given_options(ctx), *dashes, *words]
    hidden = tuple(hide(word, secrets) for word in given)
    return replace(spec, arguments=hidden, withheld=list(hidden) != given)


def _given_options(ctx: click.Context) -> list[str]:
    """The options on the command line, but those that say which job it is and where it lies."""
    given: list[str] = []
    for param in ctx.command.params:
        name = param.name or ""
        source = ctx.get_parameter_source(name)
        if (
            not isinstance(param, click.Option)
            or source is not click.core.ParameterSource.COMMANDLINE
            or name in _PLACES
        ):
            continue
        value = ctx.params[name]
        if param.is_flag:
            given.append((param.opts if value else param.secondary_opts)[0])
            continue
        for one in value if param.multiple else [value]:
            given += [param.opts[0], str(one)]
    return given


def _say(text: str) -> None:
    _print(text, dim=True)


def _warn(text: str) -> None:
    _print(text, fg="yellow")


def _print(text: str, **style: Any) -> None:
    from bt_lightning.cli.render.text import printable

    with contextlib.suppress(OSError):  # a closed terminal must not end the training
        click.secho(f"bt-lightning: {printable(text)}", err=True, **style)


def _shown(url: str) -> str:
    from bt_lightning.store.interface import redact

    return redact(url)
