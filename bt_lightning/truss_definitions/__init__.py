"""The classes of `truss_train` that a `config.py` uses, checked, and without truss.

In come keyword arguments, mappings, or objects of truss (`as_definition`); out go checked
definitions with the names, fields, defaults and serialised form of truss. Pure: nothing here reads
a file or the environment (`bt_lightning.load_config` does), and no error shows a secret. Start
reading at `definition`, then `jobs`.
"""

from __future__ import annotations

from bt_lightning.truss_definitions.checkpoints import (
    BasetenCheckpoint,
    CheckpointingConfig,
    CheckpointRef,
    LatestCheckpoint,
    LoadCheckpointConfig,
    LoopsCheckpoint,
    LoopsCheckpointRef,
    NamedCheckpoint,
    on_a_store,
)
from bt_lightning.truss_definitions.definition import (
    Definition,
    as_definition,
)
from bt_lightning.truss_definitions.deployment import (
    Checkpoint,
    CheckpointList,
    DeployCheckpointsConfig,
    DeployCheckpointsRuntime,
    FullCheckpoint,
    LoRACheckpoint,
    LoRADetails,
    ModelWeightsFormat,
    WhisperCheckpoint,
)
from bt_lightning.truss_definitions.images import (
    AWSAssumeRoleDockerAuth,
    AWSIAMDockerAuth,
    AWSOIDCDockerAuth,
    DockerAuth,
    DockerAuthType,
    GCPOIDCDockerAuth,
    GCPServiceAccountJSONDockerAuth,
    Image,
    RegistrySecretDockerAuth,
    SecretReference,
)
from bt_lightning.truss_definitions.jobs import (
    CacheConfig,
    InteractiveSession,
    InteractiveSessionAuthProvider,
    InteractiveSessionProvider,
    InteractiveSessionTrigger,
    Runtime,
    TrainingJob,
    TrainingProject,
    Workspace,
)
from bt_lightning.truss_definitions.resources import (
    Accelerator,
    AcceleratorSpec,
    AvailabilityModel,
    Compute,
)
from bt_lightning.truss_definitions.weights import (
    WeightsAuth,
    WeightsAuthMethod,
    WeightsSource,
)

__all__ = [
    "AWSAssumeRoleDockerAuth",
    "AWSIAMDockerAuth",
    "AWSOIDCDockerAuth",
    "Accelerator",
    "AcceleratorSpec",
    "AvailabilityModel",
    "BasetenCheckpoint",
    "CacheConfig",
    "Checkpoint",
    "CheckpointList",
    "CheckpointRef",
    "CheckpointingConfig",
    "Compute",
    "Definition",
    "DeployCheckpointsConfig",
    "DeployCheckpointsRuntime",
    "DockerAuth",
    "DockerAuthType",
    "FullCheckpoint",
    "GCPOIDCDockerAuth",
    "GCPServiceAccountJSONDockerAuth",
    "Image",
    "InteractiveSession",
    "InteractiveSessionAuthProvider",
    "InteractiveSessionProvider",
    "InteractiveSessionTrigger",
    "LatestCheckpoint",
    "LoRACheckpoint",
    "LoRADetails",
    "LoadCheckpointConfig",
    "LoopsCheckpoint",
    "LoopsCheckpointRef",
    "ModelWeightsFormat",
    "NamedCheckpoint",
    "RegistrySecretDockerAuth",
    "Runtime",
    "SecretReference",
    "TrainingJob",
    "TrainingProject",
    "WeightsAuth",
    "WeightsAuthMethod",
    "WeightsSource",
    "WhisperCheckpoint",
    "Workspace",
    "as_definition",
    "on_a_store",
]
