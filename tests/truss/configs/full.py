"""Everything that a config may say, in the spellings that configs have."""

from pathlib import Path

from truss.base import truss_config
from truss.base.truss_config import AcceleratorSpec, WeightsAuth, WeightsAuthMethod
from truss_train import BasetenCheckpoint, LoopsCheckpoint, WeightsSource, definitions

NAME = Path(__file__).stem

runtime = definitions.Runtime(
    start_commands=["chmod +x ./run.sh && ./run.sh", "python - <<X\nprint('two lines')\nX"],
    environment_variables={
        "STEPS": "100",
        "HF_TOKEN": definitions.SecretReference(name="hf_access_token"),
    },
    checkpointing_config=definitions.CheckpointingConfig(
        enabled=True, checkpoint_path="/mnt/ckpts", volume_size_gib=500
    ),
    load_checkpoint_config=definitions.LoadCheckpointConfig(
        enabled=True,
        download_folder="/tmp/earlier",
        checkpoints=[
            BasetenCheckpoint.from_latest_checkpoint(project_name="team/qwen3 0.6b"),
            BasetenCheckpoint.from_latest_checkpoint(job_id="gvpql31"),
            BasetenCheckpoint.from_named_checkpoint("a/checkpoint-20", job_id="gvpql31"),
            LoopsCheckpoint.from_checkpoint("run1", "step-100", target="sampler"),
            {"checkpoint_name": ".", "job_id": "lqz4pw4"},
        ],
    ),
    enable_cache=True,
)
runtime.start_commands.append("python train.py")

job = definitions.TrainingJob(
    image=definitions.Image(
        base_image="registry.example/image:1",
        docker_auth=definitions.DockerAuth(
            auth_method=truss_config.DockerAuthType.REGISTRY_SECRET,
            registry="registry.example",
            registry_secret_docker_auth=definitions.RegistrySecretDockerAuth(
                secret_ref=definitions.SecretReference(name="registry")
            ),
        ),
    ),
    compute=definitions.Compute(
        node_count=2,
        cpu_count=8,
        memory="64Gi",
        accelerator=AcceleratorSpec(accelerator="H100", count="8"),
        availability_model=definitions.AvailabilityModel.SPOT,
    ),
    runtime=runtime,
    interactive_session=definitions.InteractiveSession(
        trigger=definitions.InteractiveSessionTrigger.ON_FAILURE,
        session_provider=definitions.InteractiveSessionProvider.SSH,
        auth_provider=definitions.InteractiveSessionAuthProvider.GITHUB,
        timeout_minutes=60,
    ),
    workspace=definitions.Workspace(workspace_root="..", external_dirs=["../data"]),
    weights=[
        WeightsSource(source="hf://Qwen/Qwen3-0.6B@main", mount_location="/models/base"),
        WeightsSource(
            source="s3://bucket/weights",
            mount_location="/models/other",
            auth=WeightsAuth(
                auth_method=WeightsAuthMethod.AWS_OIDC,
                aws_oidc_role_arn="arn:aws:iam::1:role/r",
                aws_oidc_region="us-east-1",
            ),
            allow_patterns=["*.safetensors"],
            ignore_patterns=("*.md",),
        ),
    ],
)
job.name, job.priority = NAME, 3
job.compute.accelerator = "H200:4"

deploy = definitions.DeployCheckpointsConfig(
    checkpoint_details=definitions.CheckpointList(
        checkpoints=[
            definitions.LoRACheckpoint(
                training_job_id="gvpql31",
                checkpoint_name="checkpoint-20",
                lora_details=definitions.LoRADetails(rank=32),
            )
        ]
    )
)

project = definitions.TrainingProject(name=NAME, job=job, team_name="research")
