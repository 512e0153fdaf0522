"""A training job on Baseten, or on a machine of your own, from this one file.

`truss train push examples/baseten/config.py` sends this folder to Baseten and starts run.sh there;
`bt-lightning run --store ./store --job-id first examples/baseten/config.py` does the same here.
Kill it at any time: the same command again goes on with the job `first`.

To begin from the newest checkpoint of an earlier job, here or there, add to `Runtime`:

    load_checkpoint_config=definitions.LoadCheckpointConfig(
        enabled=True,
        checkpoints=[
            definitions.BasetenCheckpoint.from_latest_checkpoint(job_id="first"),
        ],
    )
"""

from truss.base.truss_config import Accelerator, AcceleratorSpec
from truss_train import definitions

runtime = definitions.Runtime(
    start_commands=["bash run.sh"],
    checkpointing_config=definitions.CheckpointingConfig(enabled=True, volume_size_gib=10),
)

project = definitions.TrainingProject(
    name="GPT that adds",
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
