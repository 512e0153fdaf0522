"""A file that is a checkpoint by itself: Lightning's `.ckpt`, `torch.save`, safetensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bt_lightning.checkpoint_formats.names_in_paths import (
    epoch_of_name,
    metrics_of_name,
    step_of_name,
)
from bt_lightning.checkpoint_formats.results import Incomplete, Whole
from bt_lightning.checkpoint_formats.tensor_file_checks import (
    UnknownContentError,
    check_safetensors,
    check_torch_file,
    is_checkpoint_name,
)
from bt_lightning.checkpoint_formats.top_level_entries import facts_of_state, is_adapter
from bt_lightning.errors import CheckpointCorruptError

if TYPE_CHECKING:
    from bt_lightning.checkpoint_formats.folder_view import FolderView
    from bt_lightning.tensor_files.tensor_headers import Header


def recognize_file(view: FolderView, path: str) -> Whole | Incomplete | None:
    """What the file `path` of the view is; None if it is no checkpoint.

    Raises:
        OSError: `view.read` failed.
    """
    name = path.rpartition("/")[2]
    if not is_checkpoint_name(name):
        return None
    kind = "safetensors" if name.endswith(".safetensors") else _torch_format(name)
    try:
        if kind == "safetensors":
            return _safetensors(path, check_safetensors(view, path))
        return _torch(path, check_torch_file(view, path).value)
    except UnknownContentError:
        return None
    except CheckpointCorruptError as error:
        return Incomplete(format=kind, reason=str(error), files=(path,))


def _torch_format(name: str) -> str:
    return "lightning-ckpt" if name.endswith(".ckpt") else "torch"


def _safetensors(path: str, header: Header | None) -> Whole:
    names = [] if header is None else [tensor.name for tensor in header.tensors]
    stem = _stem(path)
    return Whole(
        format="safetensors",
        files=(path,),
        step=step_of_name(stem),
        epoch=epoch_of_name(stem),
        metrics=metrics_of_name(stem),
        adapter=is_adapter(names),
    )


def _torch(path: str, value: Any) -> Whole | None:
    """None for a whole file of `torch.save` that holds no dictionary, so no state."""
    stem, facts = _stem(path), facts_of_state(value)
    if value is not None and not facts.is_dictionary:
        return None
    is_lightning = facts.is_lightning or (value is None and path.endswith(".ckpt"))
    return Whole(
        format="lightning-ckpt" if is_lightning else "torch",
        files=(path,),
        step=facts.step or step_of_name(stem),
        epoch=facts.epoch or epoch_of_name(stem),
        metrics=metrics_of_name(stem),
        adapter=facts.is_adapter,
        resumable=facts.has_optimizer,
    )


def _stem(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[0]
