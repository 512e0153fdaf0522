"""A training job and its project: what a `config.py` defines."""

from __future__ import annotations

from collections import Counter
from dataclasses import field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from typing_extensions import override

from bt_lightning.errors import InvalidSettingError
from bt_lightning.truss_definitions.checkpoints import CheckpointingConfig, LoadCheckpointConfig
from bt_lightning.truss_definitions.definition import Definition
from bt_lightning.truss_definitions.images import Image, SecretReference
from bt_lightning.truss_definitions.resources import Compute
from bt_lightning.truss_definitions.validators import FilePath, Name, Text
from bt_lightning.truss_definitions.weights import WeightsSource

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_SESSION_MINUTES: Final = 8 * 60


class CacheConfig(Definition):
    """The cache that jobs of a project or team share."""

    enabled: bool = False
    enable_legacy_hf_mount: bool = False
    require_cache_affinity: bool = True
    mount_base_path: FilePath = "/root/.cache"


class InteractiveSessionTrigger(str, Enum):
    """When an interactive session begins."""

    ON_STARTUP = "on_startup"
    ON_FAILURE = "on_failure"
    ON_DEMAND = "on_demand"


class InteractiveSessionProvider(str, Enum):
    """The client of an interactive session."""

    VS_CODE = "vs_code"
    CURSOR = "cursor"
    SSH = "ssh"


class InteractiveSessionAuthProvider(str, Enum):
    """The account provider for an interactive session."""

    GITHUB = "github"
    MICROSOFT = "microsoft"


class InteractiveSession(Definition):
    """A shell or an editor inside the running job; on Baseten only."""

    trigger: InteractiveSessionTrigger = InteractiveSessionTrigger.ON_DEMAND
    timeout_minutes: int = DEFAULT_SESSION_MINUTES
    session_provider: InteractiveSessionProvider = InteractiveSessionProvider.VS_CODE
    auth_provider: InteractiveSessionAuthProvider = InteractiveSessionAuthProvider.MICROSOFT


class Runtime(Definition):
    """The commands of a job, and their environment."""

    start_commands: list[Text] = field(default_factory=list)
    """Shell lines, run one after the other."""
    environment_variables: dict[str, str | SecretReference] = field(
        default_factory=dict, repr=False
    )
    """Not in the repr: people write secrets here."""
    enable_cache: bool | None = None
    """Old spelling of `cache_config`; always None, since its value is moved there."""
    checkpointing_config: CheckpointingConfig = field(default_factory=CheckpointingConfig)
    load_checkpoint_config: LoadCheckpointConfig | None = None
    cache_config: CacheConfig | None = None

    @classmethod
    @override
    def _normalised(cls, values: Mapping[Any, object]) -> Mapping[Any, object]:
        enabled = values.get("enable_cache")
        if enabled is None:
            return values
        if values.get("cache_config") is not None:
            msg = (
                "Runtime has both enable_cache and cache_config, expected cache_config alone:"
                " write CacheConfig(enabled=True, enable_legacy_hf_mount=True) for enable_cache"
            )
            raise InvalidSettingError(msg)
        if not isinstance(enabled, bool):
            return values
        cache = CacheConfig(enabled=enabled, enable_legacy_hf_mount=enabled)
        return {**values, "enable_cache": None, "cache_config": cache}

    @override
    def _check(self) -> None:
        if self.enable_cache is not None:
            msg = "Runtime.enable_cache is an old spelling: assign cache_config=CacheConfig(...)"
            raise InvalidSettingError(msg)
        for name, value in self.environment_variables.items():
            if not name or "=" in name or "\0" in name:
                msg = (
                    f"Runtime.environment_variables has the name {name!r}, expected one without"
                    " '=' and NUL, which no process could be given: rename it"
                )
                raise InvalidSettingError(msg)
            if isinstance(value, str) and "\0" in value:
                msg = (
                    f"Runtime.environment_variables[{name!r}] holds a NUL character, expected text"
                    " that a process can be given: take it out"
                )
                raise InvalidSettingError(msg)


class Workspace(Definition):
    """The folders that a job gets besides that of the config."""

    workspace_root: FilePath | None = None
    external_dirs: list[FilePath] = field(default_factory=list)
    exclude_dirs: list[FilePath] = field(default_factory=list)


class TrainingJob(Definition):
    """One run of a training script."""

    image: Image
    compute: Compute = field(default_factory=Compute)
    runtime: Runtime = field(default_factory=Runtime)
    interactive_session: InteractiveSession | None = None
    name: Name | None = None
    priority: int | None = None
    workspace: Workspace | None = None
    weights: list[WeightsSource] = field(default_factory=list)
    enable_baseten_workdir: bool = True
    """Whether commands start in the folder of the config, or in the image's own."""

    @override
    def _check(self) -> None:
        mounts = Counter(source.mount_location.rstrip("/") for source in self.weights)
        twice = [place for place, count in mounts.items() if count > 1]
        if twice:
            msg = (
                f"TrainingJob.weights has {twice[0]!r} as the mount_location of two sources,"
                " expected another for each: mount one elsewhere"
            )
            raise InvalidSettingError(msg)


class TrainingProject(Definition):
    """A project, with the job to run in it."""

    name: Name
    job: TrainingJob = field(metadata={"excluded": True})
    team_name: Name | None = None
