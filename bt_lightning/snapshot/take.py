"""A checkpoint dictionary -> the files of a checkpoint, as functions that yield their bytes."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bt_lightning.errors import UnsupportedStateError
from bt_lightning.layout import LEFTOVERS, TREE
from bt_lightning.snapshot.encode import Encoder
from bt_lightning.snapshot.image import file_pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

HYPER_PARAMETERS = ("hyper_parameters", "datamodule_hyper_parameters")
"""Entries of a Lightning checkpoint that a resume does not read: a hole there stops nobody."""


@dataclass(frozen=True)
class Snapshot:
    """Everything that a commit needs. Its tensors alias the state: write before the next step."""

    files: dict[str, Callable[[], Iterator[memoryview | bytes]]]
    """Path inside the checkpoint -> its bytes, in pieces."""
    leftovers: tuple[tuple[str, str], ...]
    """(path in the state, type) of each value that is in `leftovers.pt`."""
    dropped: tuple[tuple[str, str], ...]
    """The same of each hyperparameter that could not even be pickled."""
    classes: dict[type, str]
    """Class that the tree names -> path in the state of the first value that has it."""


def take(checkpoint: Mapping[str, Any], weights_prefix: str = "") -> Snapshot:
    """Lay out a Lightning (or Fabric, or plain) checkpoint dictionary as files.

    Tensors may have any shape and lie on any device; those on the host are not copied.

    Raises:
        UnsupportedStateError: a value can be neither encoded nor pickled, or is sharded.
    """
    encoder = Encoder(weights_prefix)
    tree = encoder.encode(checkpoint)
    pickled, dropped = _pickle(encoder.leftovers)
    text = json.dumps({"tree": tree, "dropped": dropped}, separators=(",", ":")).encode("ascii")
    files: dict[str, Callable[[], Iterator[memoryview | bytes]]] = {
        file: _pieces_of(tensors) for file, tensors in encoder.tensors.items() if tensors
    }
    files[TREE] = lambda: iter([text])
    if pickled is not None:
        files[LEFTOVERS] = lambda: iter([pickled])
    kinds = [(path, _type_name(value)) for path, value in encoder.leftovers.items()]
    return Snapshot(
        files,
        tuple(pair for pair in kinds if pair[0] not in dropped),
        tuple(pair for pair in kinds if pair[0] in dropped),
        encoder.classes,
    )


def _pieces_of(
    tensors: dict[str, torch.Tensor],
) -> Callable[[], Iterator[memoryview | bytes]]:
    return lambda: file_pieces(tensors)


def _type_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _pickle(leftovers: dict[str, object]) -> tuple[bytes | None, list[str]]:
    """The bytes of `leftovers.pt`, and the paths of hyperparameters that cannot even be pickled.

    Lightning, too, drops hyperparameters that cannot be pickled, with a warning.
    """
    if not leftovers:
        return None, []
    try:
        return _saved(leftovers), []
    except Exception:  # noqa: BLE001
        kept, dropped = {}, []
    for path, value in leftovers.items():
        try:
            _saved(value)
            kept[path] = value
        except Exception as error:
            if path.partition(".")[0] not in HYPER_PARAMETERS:
                msg = (
                    f"{path} is a {_type_name(value)}, which can be neither encoded nor pickled"
                    f" ({type(error).__name__}: {error}): keep it out of the checkpoint"
                )
                raise UnsupportedStateError(msg) from error
            dropped.append(path)
    return (_saved(kept) if kept else None), dropped


def _saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
