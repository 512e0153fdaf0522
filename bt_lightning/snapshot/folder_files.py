"""Lays out the files of a folder that a framework defines: safetensors, `torch.save`, and bytes."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from bt_lightning.errors import UnsupportedStateError
from bt_lightning.path_layout import check_member
from bt_lightning.snapshot.dtypes import SAFETENSORS
from bt_lightning.snapshot.state_files import Snapshot, tensor_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bt_lightning.snapshot.state_files import EncodingCache, TensorFile


@dataclass(frozen=True)
class SafetensorsFile:
    """A safetensors file: any reader of the format gets these tensors and this metadata.

    Args:
        tensors: name -> dense tensor of any shape, strides and device. Tensors that share memory
            are written once for each name: the caller decides which names there are.
        metadata: name -> text, in the file's header.
    """

    tensors: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str] = field(default_factory=lambda: {"format": "pt"})


@dataclass(frozen=True)
class TorchFile:
    """A file as `torch.save` writes it.

    Args:
        state: any value that pickle takes; the bytes of its tensors are copied as those of other
            files, the rest of it when it is laid out.
    """

    state: Any


Content = SafetensorsFile | TorchFile | bytes
"""What is in one file of a folder."""


def lay_out_folder(files: Mapping[str, Content], cache: EncodingCache | None = None) -> Snapshot:
    """Lay out the files of a folder, by posix path inside it; copies no tensor.

    Raises:
        UnsupportedStateError: a file cannot be written: a tensor that safetensors does not have, or
            a value that cannot be pickled.
        CheckpointCorruptError: a path leaves the folder, or is that of a manifest.
    """
    tensor_files, small = {}, {}
    for path, content in files.items():
        check_member(path)
        if isinstance(content, bytes):
            small[path] = content
        elif isinstance(content, SafetensorsFile):
            tensor_files[path] = _safetensors(path, content, cache)
        else:
            small[path] = _pickled(content.state)
    return Snapshot(tensor_files, small, (), (), {})


def _safetensors(path: str, content: SafetensorsFile, cache: EncodingCache | None) -> TensorFile:
    for name, tensor in content.tensors.items():
        if tensor.layout is not torch.strided or tensor.dtype not in SAFETENSORS:
            msg = f"{path}: safetensors cannot hold {name}, of {tensor.dtype} and {tensor.layout}"
            raise UnsupportedStateError(msg)
    tensors = {name: tensor.detach() for name, tensor in content.tensors.items()}
    return tensor_file(path, (), tensors, cache, content.metadata)


def _pickled(state: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
