"""What is to be run, with every choice made; and the environment that its commands see. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

LEADER_PORT: Final = 29400
"""Where torchrun's rendezvous of several nodes listens."""
LIGHTNING: Final = "BT_LIGHTNING"
"""Set to `1`: every Trainer gets the callback, through Lightning's entry point."""
_SHELL: Final = (
    "trap 'bt_stop=1' HUP INT QUIT TERM; trap : USR1 USR2; "
    'for bt_line do eval "$bt_line"; bt_status=$?; '
    '[ "$bt_status" -eq 0 ] || exit "$bt_status"; [ -z "$bt_stop" ] || exit 143; done'
)


def shell(lines: Sequence[str]) -> tuple[str, ...]:
    """A program that runs the start commands in one shell, up to the first that fails.

    What one sets (`cd`, `export`) holds for the next, as Baseten's own recipes need it. A signal
    that reaches the shell as well is not its end: it waits for its command, and starts no other.
    """
    return ("/bin/sh", "-c", _SHELL, "sh", *lines)


@dataclass(frozen=True, slots=True)
class Reference:
    """A checkpoint of an earlier job, as somebody names it; None is the latest."""

    project: str | None = None
    job: str | None = None
    checkpoint: str | None = None

    def __str__(self) -> str:
        job = f"the job {self.job}" if self.job else "the most recent job"
        project = f" of the project {self.project}" if self.project else ""
        return f"{self.checkpoint or 'the latest checkpoint'} of {job}{project}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """This machine among those of the job."""

    rank: int = 0
    size: int = 1
    leader: str | None = None
    """Address of node 0."""
    num_gpus: int = 0
    """Of each node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """One node of a job; every path absolute."""

    project: str
    job_id: str
    job_name: str
    command: tuple[str, ...]
    """The words of one program."""
    directory: Path
    """Where it runs."""
    nodes: Nodes
    checkpoint_dir: Path | None
    """None: checkpointing is off."""
    volume_size_gib: float | None
    store_url: str | None = field(repr=False)
    references: tuple[Reference, ...] = ()
    """What is brought to `load_dir` before the command."""
    load_dir: Path | None = None
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Of the user's; may hold secrets."""
    workdir: bool = False
    """Whether `BT_WORKING_DIR` is exported."""
    cache: Path | None = None
    """Below it lie the caches of the project and of the team."""
    grace_s: float | None = None
    """Seconds that the platform gives between SIGTERM and SIGKILL."""
    interval: str | None = None
    """`auto`, or seconds between saves of Trainers by themselves."""
    weights_only: bool | None = None
    """False: what the job's own checkpoints hold may be unpickled."""


def environment(
    spec: JobSpec, inherited: Mapping[str, str], retry: int, scratch: Path
) -> dict[str, str]:
    """The environment of attempt `retry`: that of the runner, Baseten's variables, the user's."""
    nodes = spec.nodes
    ours = {
        "BT_TRAINING_JOB_ID": spec.job_id,
        "BT_TRAINING_JOB_NAME": spec.job_name,
        "BT_TRAINING_PROJECT_ID": _project_id(spec, inherited),
        "BT_TRAINING_PROJECT_NAME": spec.project,
        "BT_NUM_GPUS": str(nodes.num_gpus),
        "BT_GROUP_SIZE": str(nodes.size),
        "BT_NODE_RANK": str(nodes.rank),
        "BT_LEADER_ADDR": nodes.leader or "127.0.0.1",
        "BT_RETRY_COUNT": str(retry),
        "BT_SCRATCH_DIR": str(scratch),
        "BT_WORKING_DIR": str(spec.directory) if spec.workdir else None,
        "BT_STORE_URL": spec.store_url,
        "BT_SAVE_INTERVAL": spec.interval,
        "BT_WEIGHTS_ONLY": None if spec.weights_only is None else str(int(spec.weights_only)),
        "BT_GRACE_S": None if spec.grace_s is None else f"{spec.grace_s:g}",
        **_checkpointing(spec),
        **caches(spec),
    }
    known = {name: value for name, value in ours.items() if value is not None}
    kept = {name: value for name, value in inherited.items() if name not in ours}
    return {**kept, **known, **spec.variables}


def _project_id(spec: JobSpec, inherited: Mapping[str, str]) -> str:
    """That of the platform, in a job of its own: its APIs know the project by no other."""
    same = inherited.get("BT_TRAINING_PROJECT_NAME") == spec.project
    return (same and inherited.get("BT_TRAINING_PROJECT_ID")) or spec.project


def _checkpointing(spec: JobSpec) -> dict[str, str | None]:
    on, size = spec.checkpoint_dir is not None, spec.volume_size_gib
    return {
        "BT_CHECKPOINT_DIR": str(spec.checkpoint_dir) if on else None,
        "BT_LOAD_CHECKPOINT_DIR": str(spec.load_dir) if spec.load_dir is not None else None,
        "BT_VOLUME_SIZE_GIB": None if size is None else f"{size:g}",
        LIGHTNING: "1" if on else None,
    }


def caches(spec: JobSpec) -> dict[str, str]:
    """Variable -> folder of each cache that the job has."""
    if spec.cache is None:
        return {}
    return {
        "BT_RW_CACHE_DIR": str(spec.cache),
        "BT_PROJECT_CACHE_DIR": str(spec.cache / "user_artifacts"),
        "BT_TEAM_CACHE_DIR": str(spec.cache / "team_artifacts"),
    }
