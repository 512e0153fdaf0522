"""The table of formats: which format a folder looks like by its names, and whether it is whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bt_lightning.checkpoint_formats.hf_files import ADAPTER_CONFIG, CONFIG, is_weights
from bt_lightning.checkpoint_formats.pretrained_folder import (
    MODULES,
    PIPELINE,
    check_pretrained,
    pretrained_files,
)
from bt_lightning.checkpoint_formats.results import Incomplete, Whole
from bt_lightning.checkpoint_formats.sharded_folders import (
    DEEPSPEED,
    LATEST,
    METADATA,
    SHARD_SUFFIX,
    check_deepspeed_folder,
    check_distributed,
    is_deepspeed_state,
)
from bt_lightning.checkpoint_formats.tensor_file_checks import (
    INDEX,
    SUFFIXES,
    MayBeAllError,
    UnknownContentError,
)
from bt_lightning.checkpoint_formats.trainer_folder import (
    SENTINEL,
    TRAINER_STATE,
    TRAINING_ARGS,
    check_accelerate,
    check_trainer,
    is_trainer_folder,
)
from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.path_layout import MANIFEST, SHARDS, TREE, rank_of_shard

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from bt_lightning.checkpoint_formats.folder_view import FolderView

_CONFIGS: Final = frozenset({CONFIG, ADAPTER_CONFIG, MODULES, PIPELINE})
_TRAINER_ONLY: Final = frozenset({TRAINER_STATE, SENTINEL, TRAINING_ARGS})


@dataclass(frozen=True, slots=True)
class Format:
    """One format of folders."""

    name: str
    claims: Callable[[str, Collection[str], Collection[str]], bool]
    """Whether a folder looks like it: (name, names of its files, names of its folders)."""
    check: Callable[[FolderView], Whole]
    """What it is if it is whole; raises `CheckpointCorruptError` with what is missing."""
    takes_all: bool
    """Whether all that lies below the folder belongs to it."""


def _is_own(_: str, files: Collection[str], __: Collection[str]) -> bool:
    return TREE in files and any(
        file == SHARDS or rank_of_shard(file) is not None for file in files
    )


def _check_own(_: FolderView) -> Whole:
    msg = (
        f"{MANIFEST} is missing, which is written last: this is a part of a sharded checkpoint, or"
        " one of which not all was copied. `checkpoints download` brings all of it"
    )
    raise CheckpointCorruptError(msg)


def _is_trainer(name: str, files: Collection[str], _: Collection[str]) -> bool:
    has_state = TRAINER_STATE in files and "optimizer.pt" in files
    named = is_trainer_folder(name) and (
        set(files) == {"optimizer.pt"}  # what a deletion that was killed left, or a first file
        or any(file in _TRAINER_ONLY or file.startswith("rng_state") for file in files)
    )
    return has_state or named


def _is_accelerate(_: str, files: Collection[str], __: Collection[str]) -> bool:
    return any(file.startswith("random_states_") and file.endswith(".pkl") for file in files) or (
        "optimizer.bin" in files and any(is_weights(file) for file in files)
    )


def _is_distributed(_: str, files: Collection[str], __: Collection[str]) -> bool:
    return any(file == METADATA or file.endswith(SHARD_SUFFIX) for file in files)


def _is_deepspeed(_: str, files: Collection[str], folders: Collection[str]) -> bool:
    return (LATEST in files and bool(folders)) or any(is_deepspeed_state(file) for file in files)


def _is_pretrained(_: str, files: Collection[str], __: Collection[str]) -> bool:
    weights = any(is_weights(file.removesuffix(INDEX)) for file in files)
    several = any(file.endswith(INDEX) or "-of-" in file for file in files)
    adapter = any(file.startswith("adapter_model.") for file in files)
    return bool(_CONFIGS.intersection(files)) or (weights and several) or adapter


FORMATS: Final = (
    Format("bt_lightning", _is_own, _check_own, takes_all=True),
    Format("hf-trainer", _is_trainer, check_trainer, takes_all=True),
    Format("accelerate", _is_accelerate, check_accelerate, takes_all=True),
    Format(DEEPSPEED, _is_deepspeed, check_deepspeed_folder, takes_all=True),
    Format("dcp", _is_distributed, check_distributed, takes_all=True),
    Format("hf-pretrained", _is_pretrained, check_pretrained, takes_all=False),
)
"""The first that claims a folder counts."""


def format_of(name: str, files: Collection[str], folders: Collection[str]) -> Format | None:
    """The format that a folder looks like, by its name and the names in it."""
    return next((one for one in FORMATS if one.claims(name, files, folders)), None)


def recognize(view: FolderView) -> Whole | Incomplete | None:
    """What the folder is; None if it is no checkpoint, or nothing tells whether it is whole.

    Raises:
        OSError: `view.read` failed: a file is gone, or cannot be read.
    """
    top = [path for path in view.files if "/" not in path]
    folders = {path.split("/")[0] for path in view.files if "/" in path}
    found = format_of(view.name, top, folders)
    if found is None:
        return None
    try:
        return found.check(view)
    except UnknownContentError:
        return None
    except CheckpointCorruptError as error:
        files = tuple(sorted(view.files)) if found.takes_all else pretrained_files(view)
        tensors = any(path.endswith((*SUFFIXES, SHARD_SUFFIX)) for path in files)
        kept_back = tensors and not isinstance(error, MayBeAllError)
        return Incomplete(format=found.name, reason=str(error), files=files, kept_back=kept_back)
