"""The plan of a job: a `JobSpec` from command-line options, a config file and the environment."""

from __future__ import annotations

import re
import secrets
import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import InvalidSettingError
from bt_lightning.path_layout import plain_folder, slug
from bt_lightning.runtime.job_spec_and_environment import JobSpec, Nodes, Reference, shell
from bt_lightning.runtime.load_earlier_checkpoints import parse_reference
from bt_lightning.runtime.torchrun_command import JOIN_S, torchrun_command
from bt_lightning.settings import DEFAULT_PROJECT, Settings, whole_number
from bt_lightning.truss_definitions import LatestCheckpoint, NamedCheckpoint, on_a_store
from bt_lightning.truss_definitions.checkpoints import LOADED_CHECKPOINTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bt_lightning.truss_definitions import Runtime, SecretReference, TrainingProject

_ID: Final = string.ascii_lowercase + string.digits
_ID_LENGTH: Final = 7
"""Characters of a job id, as Baseten's."""
_NOT_IN_NAME: Final = re.compile(r"[^A-Za-z0-9_]")
_RANGE: Final = re.compile(r"(\d{1,6}):(\d{1,6})")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandOptions:
    """The options of `bt-lightning run`; None where one is not given."""

    project: str | None = None
    job_id: str | None = None
    job_name: str | None = None
    store: str | None = field(default=None, repr=False)
    directory: str | None = None
    load: tuple[str, ...] = ()
    load_dir: str | None = None
    volume_size_gib: float | None = None
    elastic: bool = False
    processes: int | None = None
    """Processes of each node, under torchrun."""
    nnodes: str | None = None
    """Fewest and most nodes of an attempt, under torchrun, as `1:4`."""
    join_wait_s: float | None = None
    """Seconds that a start waits for nodes beyond the fewest."""
    grace_s: float | None = None
    interval: str | None = None
    logs: bool = True
    trust: bool = False


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """Facts of this machine that its environment variables do not say."""

    directory: Path
    """Where a command without a config file runs."""
    num_gpus: int
    cache: Path
    """The default folder of job caches."""


def plan_command(
    words: Sequence[str], options: CommandOptions, environ: Mapping[str, str], machine: MachineFacts
) -> JobSpec:
    """Plan a job that runs one program in the current directory.

    Raises:
        InvalidSettingError: an option or a `BT_*` variable cannot be used.
    """
    settings = Settings.from_environ(environ)
    _check_elastic(options)
    nodes = _nodes(environ, settings, machine.num_gpus, 1, options.nnodes)
    job_id = _job_id(options, settings)
    command = tuple(words)
    if options.elastic:
        processes = options.processes or max(machine.num_gpus, 1)
        join_wait_s = JOIN_S if options.join_wait_s is None else options.join_wait_s
        command = torchrun_command(words, nodes, processes, job_id, join_wait_s)
    references = tuple(parse_reference(text) for text in options.load)
    store = _store(options, settings, machine)
    folder = options.directory or settings.checkpoint_dir or f"bt_checkpoints/{slug(job_id)}"
    return JobSpec(
        project=options.project or settings.project or DEFAULT_PROJECT,
        job_id=job_id,
        job_name=options.job_name or environ.get("BT_TRAINING_JOB_NAME") or job_id,
        command=command,
        directory=machine.directory,
        nodes=nodes,
        meets=options.elastic and nodes.size > 1,
        checkpoint_dir=_absolute(folder, machine.directory),
        volume_size_gib=options.volume_size_gib or settings.volume_size_gib,
        store_url=store,
        references=references,
        load_dir=_load_dir(options.load_dir, settings, references, store, job_id),
        grace_s=_grace_s(options, settings),
        interval=_interval(options, environ),
        logs=options.logs,
        weights_only=False if options.trust else settings.weights_only,
    )


def plan_project(
    project: TrainingProject,
    directory: Path,
    options: CommandOptions,
    environ: Mapping[str, str],
    machine: MachineFacts,
) -> JobSpec:
    """Plan the job of a `config.py` in `directory`; `options` win over the file.

    Raises:
        InvalidSettingError: the file needs what only Baseten has, or a secret that is not set.
    """
    of_torchrun = (options.processes, options.nnodes, options.join_wait_s)
    if options.elastic or any(one is not None for one in of_torchrun):
        msg = (
            "--elastic, --nproc-per-node, --nnodes and --join-wait are for one program: the start"
            " commands of a config.py start torchrun"
        )
        raise InvalidSettingError(msg)
    job, settings = project.job, Settings.from_environ(environ)
    runtime, job_id = job.runtime, _job_id(options, settings)
    if not runtime.start_commands:
        msg = f"the project {project.name} has no start_commands: there is nothing to run"
        raise InvalidSettingError(msg)
    checkpointing, store = runtime.checkpointing_config, _store(options, settings, machine)
    folder = options.directory or checkpointing.checkpoint_path or settings.checkpoint_dir
    folder = folder or f"bt_checkpoints/{slug(job_id)}"
    size = options.volume_size_gib or checkpointing.volume_size_gib or settings.volume_size_gib
    references = tuple(parse_reference(text) for text in options.load) or _references(runtime)
    named = runtime.load_checkpoint_config
    chosen = options.load_dir or (named.download_folder if named is not None else None)
    cache = runtime.cache_config
    return JobSpec(
        project=options.project or project.name,
        job_id=job_id,
        job_name=options.job_name or job.name or job_id,
        command=shell(runtime.start_commands),
        directory=directory,
        nodes=_nodes(environ, settings, machine.num_gpus, job.compute.node_count),
        checkpoint_dir=_absolute(folder, directory) if checkpointing.enabled else None,
        volume_size_gib=size if checkpointing.enabled else None,
        store_url=store,
        references=references,
        load_dir=_load_dir(
            None if chosen == LOADED_CHECKPOINTS else chosen, settings, references, store, job_id
        ),
        variables=_variables(runtime.environment_variables, environ),
        secrets=_secrets(runtime.environment_variables, environ),
        workdir=job.enable_baseten_workdir,
        cache=_cache(environ, machine) if cache is not None and cache.enabled else None,
        grace_s=_grace_s(options, settings),
        interval=_interval(options, environ),
        logs=options.logs,
        weights_only=False if options.trust else settings.weights_only,
    )


def new_job_id() -> str:
    """An id for a job that nobody named."""
    return "".join(secrets.choice(_ID) for _ in range(_ID_LENGTH))


def _job_id(options: CommandOptions, settings: Settings) -> str:
    found = options.job_id or settings.job
    if found is None:
        return new_job_id()
    if slug(found) != found:
        msg = (
            f"the job id {found!r} cannot be used: expected letters, digits, '.', '_' and '-', as"
            " 'gvpql31'"
        )
        raise InvalidSettingError(msg)
    return found


def _check_elastic(options: CommandOptions) -> None:
    if options.elastic:
        return
    if options.processes is not None:
        msg = "--nproc-per-node says how many processes torchrun starts: it goes with --elastic"
        raise InvalidSettingError(msg)
    if options.nnodes is not None or options.join_wait_s is not None:
        msg = "--nnodes and --join-wait say how torchrun starts: they go with --elastic"
        raise InvalidSettingError(msg)


def _nodes(
    environ: Mapping[str, str],
    settings: Settings,
    num_gpus: int,
    nodes: int,
    nnodes: str | None = None,
) -> Nodes:
    if nnodes is None:
        fewest, size, said_by = 0, whole_number(environ, "BT_GROUP_SIZE", nodes), "BT_GROUP_SIZE"
    else:
        (fewest, size), said_by = _range(nnodes), "--nnodes"
    if size < 1 or settings.node_rank >= size:
        msg = (
            f"BT_NODE_RANK is {settings.node_rank} and the job has {size} nodes ({said_by}):"
            f" expected a rank from 0 to {max(size - 1, 0)}"
        )
        raise InvalidSettingError(msg)
    leader = environ.get("BT_LEADER_ADDR") or None
    if size > 1 and leader is None:
        msg = (
            f"the job has {size} nodes and BT_LEADER_ADDR is not set: start it on each node with"
            f" {said_by}, BT_NODE_RANK and the address of node 0 as BT_LEADER_ADDR"
        )
        raise InvalidSettingError(msg)
    gpus = whole_number(environ, "BT_NUM_GPUS", num_gpus)
    return Nodes(rank=settings.node_rank, size=size, leader=leader, num_gpus=gpus, fewest=fewest)


def _range(text: str) -> tuple[int, int]:
    """`1:4`, as torchrun has it."""
    found = _RANGE.fullmatch(text)
    fewest, most = map(int, found.groups()) if found else (0, 0)
    if not 1 <= fewest <= most:
        msg = f"--nnodes is {text!r}: expected the fewest and the most nodes, as 1:4"
        raise InvalidSettingError(msg)
    return fewest, most


def _store(options: CommandOptions, settings: Settings, machine: MachineFacts) -> str | None:
    """The store's URL; a plain path is made absolute."""
    url = options.store or settings.store_url
    if url is None or plain_folder(url) is None or "://" in url:
        return url
    return str(machine.directory / url)


def _grace_s(options: CommandOptions, settings: Settings) -> float | None:
    if options.grace_s is not None:
        return options.grace_s
    return None if settings.grace is None else settings.grace.total_seconds()


def _interval(options: CommandOptions, environ: Mapping[str, str]) -> str | None:
    text = options.interval or environ.get("BT_SAVE_INTERVAL") or None
    if text is not None:
        Settings.from_environ({"BT_SAVE_INTERVAL": text})  # refuse it here rather than in training
    return text


def _absolute(folder: str, directory: Path) -> Path:
    return directory / Path(folder.removeprefix("file://")).expanduser()


def _references(runtime: Runtime) -> tuple[Reference, ...]:
    config = runtime.load_checkpoint_config
    if config is None or not config.enabled:
        return ()
    return tuple(_reference(on_a_store(ref)) for ref in config.checkpoints)


def _reference(ref: LatestCheckpoint | NamedCheckpoint) -> Reference:
    if isinstance(ref, LatestCheckpoint):
        return Reference(ref.project_name, ref.job_id, None)
    return Reference(None, ref.job_id, ref.checkpoint_name)


def _load_dir(
    chosen: str | None,
    settings: Settings,
    references: Sequence[Reference],
    store: str | None,
    job_id: str,
) -> Path | None:
    """Folder for loaded checkpoints, one for each job: a resume takes the newest in it."""
    folder = chosen or settings.load_dir
    if references and store is None:
        msg = f"{references[0]} is to be loaded, and no store is named: --store or BT_STORE_URL"
        raise InvalidSettingError(msg)
    if not references and folder is None:
        return None
    return Path(folder or f"{LOADED_CHECKPOINTS}/{slug(job_id)}").expanduser().absolute()


def _variables(
    named: Mapping[str, str | SecretReference], environ: Mapping[str, str]
) -> dict[str, str]:
    return {
        name: value if isinstance(value, str) else _secret(value.name, environ)
        for name, value in named.items()
    }


def _secrets(
    named: Mapping[str, str | SecretReference], environ: Mapping[str, str]
) -> tuple[str, ...]:
    return tuple(_secret(one.name, environ) for one in named.values() if not isinstance(one, str))


def _secret(name: str, environ: Mapping[str, str]) -> str:
    """A secret of the workspace, which here is an environment variable of its name."""
    variable = _NOT_IN_NAME.sub("_", name)
    for candidate in (name, variable, variable.upper()):
        if candidate in environ:
            return environ[candidate]
    msg = (
        f"the job needs the secret {name!r}, and there is no workspace to take it from: set the"
        f" environment variable {variable.upper()}"
    )
    raise InvalidSettingError(msg)


def _cache(environ: Mapping[str, str], machine: MachineFacts) -> Path:
    return Path(environ.get("BT_RW_CACHE_DIR") or machine.cache).expanduser().absolute()
