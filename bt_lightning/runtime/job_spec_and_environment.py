"""The specification of one node's job, and the environment of its command."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bt_lightning.job_caches import PROJECT_CACHE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LEADER_PORT: Final = 29400
"""The port of torchrun's rendezvous of several nodes."""
LIGHTNING: Final = "BT_LIGHTNING"
"""Set to `1`: every Trainer gets the callback, through Lightning's entry point."""
_OWN_STORE: Final = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""If set, ranks that torchrun starts once more for a node that came do not find the addresses of
those before, to which gloo would connect."""
_STARTUP: Final = str(Path(__file__).with_name("startup"))
_SHELL: Final = (
    "trap 'bt_stop=1' HUP INT QUIT TERM; trap : USR1 USR2; "
    'for bt_line do eval "$bt_line"; bt_status=$?; '
    '[ "$bt_status" -eq 0 ] || exit "$bt_status"; [ -z "$bt_stop" ] || exit 143; done'
)


def shell(lines: Sequence[str]) -> tuple[str, ...]:
    """A program that runs the start commands in one shell, up to the first that fails.

    What one sets (`cd`, `export`) holds for the next, as Baseten's own recipes need. A signal
    that reaches the shell does not end it: it waits for its command, and starts no other.
    """
    return ("/bin/sh", "-c", _SHELL, "sh", *lines)


@dataclass(frozen=True, slots=True)
class Reference:
    """A checkpoint of an earlier job, as a person names it; None means the latest."""

    project: str | None = None
    job: str | None = None
    checkpoint: str | None = None

    def __str__(self) -> str:
        job = f"the job {self.job}" if self.job else "the most recent job"
        project = f" of the project {self.project}" if self.project else ""
        return f"{self.checkpoint or 'the latest checkpoint'} of {job}{project}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """The nodes of the job, and this machine's rank among them."""

    rank: int = 0
    size: int = 1
    leader: str | None = None
    """Address of node 0."""
    num_gpus: int = 0
    """GPUs of each node."""
    fewest: int = 0
    """Nodes that an attempt needs, under torchrun; 0: all."""

    @property
    def meeting(self) -> tuple[str, int]:
        """Host and port on which the nodes' torchruns meet; node 0 listens there."""
        host, _, port = (self.leader or "").rpartition(":")
        if host and port.isdigit() and host.count(":") == 0:
            return host, int(port)
        return self.leader or "127.0.0.1", LEADER_PORT


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """One node of a job; every path absolute."""

    project: str
    job_id: str
    job_name: str
    command: tuple[str, ...]
    """Program and arguments."""
    directory: Path
    """Working directory of the command."""
    nodes: Nodes
    meets: bool = False
    """Whether the command is a torchrun that meets those of other nodes."""
    checkpoint_dir: Path | None
    """None: checkpointing is off."""
    volume_size_gib: float | None
    store_url: str | None = field(repr=False)
    references: tuple[Reference, ...] = ()
    """Checkpoints that are downloaded to `load_dir` before the command."""
    load_dir: Path | None = None
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The user's environment variables; may hold secrets."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """Those of their values that a config names as secrets."""
    workdir: bool = False
    """Whether `BT_WORKING_DIR` is exported."""
    cache: Path | None = None
    """Folder of the project's and the team's caches."""
    grace_s: float | None = None
    """Seconds that the platform gives between SIGTERM and SIGKILL."""
    interval: str | None = None
    """`auto`, or seconds between the saves that Trainers make by themselves."""
    logs: bool = True
    """Whether what the command prints is sent to the store as well."""
    weights_only: bool | None = None
    """False: objects in the job's own checkpoints may be unpickled."""
    arguments: tuple[str, ...] = ()
    """How it was started, for the record."""
    withheld: bool = False
    """Whether a secret was left out of them."""


def environment(
    spec: JobSpec, inherited: Mapping[str, str], retry: int, scratch: Path
) -> dict[str, str]:
    """The environment of attempt `retry`: the runner's, Baseten's variables, then the user's."""
    nodes = spec.nodes
    ours = {
        "BT_TRAINING_JOB_ID": spec.job_id,
        "BT_TRAINING_JOB_NAME": spec.job_name,
        "BT_TRAINING_PROJECT_ID": _project_id(spec, inherited),
        "BT_TRAINING_PROJECT_NAME": spec.project,
        "BT_NUM_GPUS": str(nodes.num_gpus),
        "BT_GROUP_SIZE": str(nodes.size),
        "BT_NODE_RANK": str(nodes.rank),
        "BT_LEADER_ADDR": nodes.meeting[0],
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
    found = {**kept, **known, **spec.variables}
    if spec.meets:
        found.setdefault(_OWN_STORE, "1")
    if spec.checkpoint_dir is not None:
        found["PYTHONPATH"] = _with_startup(found.get("PYTHONPATH", ""))
    return found


def _with_startup(places: str) -> str:
    """The folder first whose `sitecustomize` lets the callback join Trainers of `transformers`."""
    rest = [place for place in places.split(os.pathsep) if place != _STARTUP]
    return os.pathsep.join([_STARTUP, *rest] if places else [_STARTUP])


def _project_id(spec: JobSpec, inherited: Mapping[str, str]) -> str:
    """The platform's project id if the project is the platform's: its APIs need it."""
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
    """Environment variable -> folder of each cache of the job."""
    if spec.cache is None:
        return {}
    return {
        "BT_RW_CACHE_DIR": str(spec.cache),
        "BT_PROJECT_CACHE_DIR": str(spec.cache / PROJECT_CACHE),
        "BT_TEAM_CACHE_DIR": str(spec.cache / "team_artifacts"),
    }
