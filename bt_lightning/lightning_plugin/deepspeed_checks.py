"""What of DeepSpeed cannot be saved or resumed, as errors with what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from bt_lightning.errors import CheckpointMismatchError, InvalidSettingError

if TYPE_CHECKING:
    from bt_lightning.manifest import Manifest

_ENGINES: Final = frozenset({"TorchCheckpointEngine"})
_OFFLOADS: Final = ("offload_optimizer", "offload_param")


def deepspeed_reason(strategy: Any) -> str | None:
    """Why checkpoints of a `DeepSpeedStrategy` cannot be saved; None if they can.

    Called at `setup`, before there is an engine.
    """
    config = strategy.config if isinstance(getattr(strategy, "config", None), dict) else {}
    zero = config.get("zero_optimization")
    for name in _OFFLOADS:
        offload = zero.get(name) if isinstance(zero, dict) else None
        if isinstance(offload, dict) and offload.get("device") == "nvme":
            return (
                f"{name} keeps states in files on NVMe, which are changed while a checkpoint is"
                " written: offload to the CPU (device='cpu')"
            )
    if getattr(strategy, "exclude_frozen_parameters", False):
        return (
            "exclude_frozen_parameters=True leaves weights out of checkpoints, and nothing verifies"
            " that a restart makes the same: take it away"
        )
    if getattr(strategy, "load_full_weights", False):
        return (
            "load_full_weights=True resumes from single files without states of optimizers: take it"
            " away"
        )
    return None


def refuse_engine(engine: Any) -> None:
    """Every rank, when saving begins: refuse what DeepSpeed would save in another way.

    Raises:
        InvalidSettingError: names it.
    """
    saver = type(engine.checkpoint_engine).__name__
    reason = None
    if type(engine).__name__ == "PipelineEngine":
        reason = "pipeline modules write a file for each layer, by themselves"
    elif getattr(engine, "has_moe_layers", False):
        reason = "layers with a mixture of experts have files of their own"
    elif saver not in _ENGINES:
        reason = f"its configuration writes checkpoints by {saver}: take that away"
    if reason is not None:
        msg = f"BTLightning cannot save what this engine of DeepSpeed trains: {reason}"
        raise InvalidSettingError(msg)


def refuse_other_size(manifest: Manifest, world_size: int) -> None:
    """Every rank, before a load that goes on training: ZeRO's states are those of so many ranks.

    Raises:
        CheckpointMismatchError: names both numbers, and the ways on.
    """
    said = manifest.origin.get("deepspeed")
    saved = said.get("world_size") if isinstance(said, dict) else None
    if saved in {None, world_size}:
        return
    msg = (
        f"the checkpoint {manifest.checkpoint_id} is of {saved} ranks, and this run has"
        f" {world_size}: DeepSpeed cannot divide its states of optimizers anew. Start {saved}"
        " ranks; or convert it (python -m deepspeed.checkpoint.ds_to_universal --input_folder"
        " FOLDER/checkpoint --output_folder OTHER/universal) and resume from OTHER with ckpt_path"
        " and {'checkpoint': {'load_universal': true}} in the configuration of DeepSpeed"
    )
    raise CheckpointMismatchError(msg)
