"""The part of a config that says which checkpoints to deploy. Nothing here acts on it."""

from __future__ import annotations

from dataclasses import field
from enum import Enum
from typing import Any, ClassVar, Final, Literal

from typing_extensions import override

from bt_lightning.errors import InvalidSettingError
from bt_lightning.truss_definitions.definition import Definition
from bt_lightning.truss_definitions.images import SecretReference
from bt_lightning.truss_definitions.resources import Compute
from bt_lightning.truss_definitions.validators import CheckpointName, FilePath, Id

DEPLOYED_CHECKPOINTS: Final = "/tmp/training_checkpoints"  # noqa: S108 - Baseten's own default
DEFAULT_LORA_RANK: Final = 16


class ModelWeightsFormat(str, Enum):
    """The kind of weights of a checkpoint."""

    LORA = "lora"
    FULL = "full"
    WHISPER = "whisper"


class Checkpoint(Definition):
    """A checkpoint of a job that is to be deployed."""

    _lax: ClassVar[bool] = True

    training_job_id: Id
    checkpoint_name: CheckpointName
    model_weight_format: ModelWeightsFormat


class FullCheckpoint(Checkpoint):
    """All weights of a model."""

    model_weight_format: ModelWeightsFormat = ModelWeightsFormat.FULL


class WhisperCheckpoint(Checkpoint):
    """All weights of a Whisper model."""

    model_weight_format: ModelWeightsFormat = ModelWeightsFormat.WHISPER


class LoRADetails(Definition):
    """Parameters of an adapter."""

    _lax: ClassVar[bool] = True

    rank: int = DEFAULT_LORA_RANK


class LoRACheckpoint(Checkpoint):
    """A LoRA adapter."""

    lora_details: LoRADetails = field(default_factory=LoRADetails)
    model_weight_format: ModelWeightsFormat = ModelWeightsFormat.LORA


class CheckpointList(Definition):
    """The checkpoints to deploy: of training jobs, or of Loops."""

    download_folder: FilePath = DEPLOYED_CHECKPOINTS
    base_model_id: str | None = None
    checkpoints: list[Checkpoint] = field(default_factory=list)
    loops_checkpoint_ids: list[str] = field(default_factory=list)

    @override
    def _check(self) -> None:
        if self.checkpoints and self.loops_checkpoint_ids:
            msg = (
                "CheckpointList has both checkpoints and loops_checkpoint_ids, expected one of"
                " them: deploy the others by themselves"
            )
            raise InvalidSettingError(msg)


class DeployCheckpointsRuntime(Definition):
    """The environment of a deployed model."""

    environment_variables: dict[str, str | SecretReference] = field(
        default_factory=dict, repr=False
    )


class DeployCheckpointsConfig(Definition):
    """Which checkpoints to deploy, and how."""

    checkpoint_details: CheckpointList | None = None
    model_name: str | None = None
    runtime: DeployCheckpointsRuntime | None = None
    compute: Compute | None = None

    @override
    def model_dump(self, *, mode: Literal["python", "json"] = "python") -> dict[str, Any]:
        """The fields as plain values; the accelerator as text here, as truss writes it."""
        plain: dict[str, Any] = super().model_dump(mode=mode)
        if self.compute is not None and self.compute.accelerator is not None:
            plain["compute"]["accelerator"] = self.compute.accelerator.model_dump(mode=mode)
        return plain
