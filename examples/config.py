"""A training job: for `truss train push config.py`, and for a machine of your own."""

from truss.base.truss_config import Accelerator, AcceleratorSpec
from truss_train import definitions

runtime = definitions.Runtime(
    start_commands=[
        "python -c 'import bt_lightning' || pip install bt-lightning",
        "python train.py",
    ],
    checkpointing_config=definitions.CheckpointingConfig(enabled=True, volume_size_gib=10),
)

project = definitions.TrainingProject(
    name="character GPT",
    job=definitions.TrainingJob(
        image=definitions.Image(base_image="pytorch/pytorch:2.7.0-cuda12.8-cudnn9-runtime"),
        compute=definitions.Compute(
            cpu_count=4,
            memory="16Gi",
            accelerator=AcceleratorSpec(accelerator=Accelerator.H100, count=1),
        ),
        runtime=runtime,
    ),
)
