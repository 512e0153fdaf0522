"""Prepares the first save of a training, while it trains: memory, and the layout of large files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from bt_lightning.hf.captured_files import tensor_bytes_in
from bt_lightning.snapshot.folder_files import SafetensorsFile, TorchFile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bt_lightning.session.folder_writer import FolderWriter
    from bt_lightning.snapshot.folder_files import Content
    from bt_lightning.snapshot.saver import Saver

_BESIDE: Final = 1 << 20
"""Bytes of the small files."""


def prepare_first_save(trainer: Any, saver: Saver, writer: FolderWriter) -> bool:
    """On the rank that writes, after a step; False if the optimizer has no state yet.

    A wrong guess of names or sizes does no harm: the first save takes longer.
    """
    optimizer = trainer.optimizer
    state = optimizer.state_dict() if optimizer is not None else {}
    if not state.get("state"):
        return False
    files: dict[str, Content] = {}
    weights = _weights(trainer.model)
    size = _BESIDE + sum(weight.nbytes for weight in weights.values())
    if not hasattr(trainer.model, "peft_config"):
        files["model.safetensors"] = SafetensorsFile(weights)
    if not trainer.args.save_only_model:
        files["optimizer.pt"] = TorchFile(state)
        size += tensor_bytes_in(state)
    saver.prepare(size)
    saver.encode_early(writer.encode_early(files))
    return True


def _weights(model: torch.nn.Module) -> Mapping[str, torch.Tensor]:
    """What of a model is likely to be saved: each tensor by one name; of PEFT, what is trained."""
    if hasattr(model, "peft_config"):
        named = model.named_parameters()
        return {name: weight.detach() for name, weight in named if weight.requires_grad}
    found: dict[str, torch.Tensor] = {}
    seen = set()
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            continue  # what a module adds to its state
        place = (tensor.data_ptr(), tensor.shape)
        if place not in seen:
            seen.add(place)
            found[name] = tensor
    return found
