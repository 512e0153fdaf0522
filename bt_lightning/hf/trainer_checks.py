"""What a Trainer may not have, since its state is not one that is saved here."""

from __future__ import annotations

from typing import Any, Final

from bt_lightning.errors import UnsupportedStateError

_SHARDED: Final = {
    "is_fsdp_enabled": "FSDP",
    "is_deepspeed_enabled": "DeepSpeed",
    "is_fsdp_xla_enabled": "FSDP of XLA",
    "is_tp_enabled": "tensor parallelism",
}


def refuse_trainer(trainer: Any) -> None:
    """Every rank: refuse a Trainer whose ranks have a part of the state each.

    Raises:
        UnsupportedStateError: it is one of those.
    """
    reason = objection(trainer)
    if reason is not None:
        raise UnsupportedStateError(reason)


def objection(trainer: Any) -> str | None:
    """Why the state of this Trainer cannot be saved; None if it can."""
    found = [name for flag, name in _SHARDED.items() if getattr(trainer, flag, False)]
    if trainer.args.device.type == "xla":
        found.append("XLA")
    if not found:
        return None
    return (
        f"BTTrainerCallback does not save a Trainer with {found[0]}, whose state is in parts on the"
        " ranks: train with DDP or on one device, or without the callback (the Trainer's own"
        " checkpoints in BT_CHECKPOINT_DIR are published as well)"
    )
