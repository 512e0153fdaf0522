"""Folders of `save_pretrained`: models, PEFT adapters, sentence-transformers, diffusers."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.checkpoint_formats.hf_files import (
    ADAPTER_CONFIG,
    CONFIG,
    check_json_files,
    check_tensor_files,
    is_weights,
    model_facts,
)
from bt_lightning.checkpoint_formats.names_in_paths import epoch_of_name, step_of_name
from bt_lightning.checkpoint_formats.results import Whole
from bt_lightning.checkpoint_formats.tensor_file_checks import (
    INDEX,
    MayBeAllError,
    UnknownContentError,
)
from bt_lightning.checkpoint_formats.trainer_folder import (
    TRAINER_STATE,
    is_trainer_folder,
    trainer_state,
)
from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_limits import RECORD, parse_json

if TYPE_CHECKING:
    from bt_lightning.checkpoint_formats.folder_view import FolderView

MODULES: Final = "modules.json"
"""The list of the modules of a sentence-transformers model, a folder each."""
PIPELINE: Final = "model_index.json"
"""The list of the components of a diffusers pipeline, a folder each."""
_SENTENCE_CONFIG: Final = "config_sentence_transformers.json"
_OF_TRANSFORMERS: Final = frozenset(
    {"architectures", "model_type", "transformers_version", "peft_type", "_class_name"}
)
_OWN_SUFFIXES: Final = (
    *(".json", ".txt", ".model", ".jinja", ".tiktoken", ".md", ".py", ".spm", ".msgpack", ".h5"),
)
_STATES: Final = re.compile(
    r"(?:lr_)?(?:optimizer|scheduler|scaler|rng_state|random_states|training_(?:state|args)|ema)"
    r"[\w.-]*\.(?:pt|pth|bin|safetensors)"
)
"""Files of tensors that loops save beside the weights; any other is a checkpoint by itself."""
_RESULTS: Final = re.compile(r".*_results\.json|requirements\.txt|.*log.*\.(?:txt|json)")


def check_pretrained(view: FolderView) -> Whole:
    """A folder of `save_pretrained`, of a model or adapter, with the folders of its components.

    Raises:
        CheckpointCorruptError: something is missing.
        UnknownContentError: nothing tells that it is one.
    """
    files = pretrained_files(view)
    own = replace(view, files={path: view.files[path] for path in files})
    weights = any(is_weights(path.removesuffix(INDEX)) for path in files)
    if not weights and not _is_of_transformers(view):
        msg = "nothing tells that this is a model"
        raise UnknownContentError(msg)
    _check_parts(own)
    step, epoch = step_of_name(view.name), epoch_of_name(view.name)
    metrics: dict[str, float] = {}
    if TRAINER_STATE in view.files:
        step, epoch, metrics = trainer_state(view)
    return Whole(
        format="peft" if ADAPTER_CONFIG in view.files else "hf-pretrained",
        files=files,
        step=step,
        epoch=epoch,
        metrics=metrics,
        resumable=any(path.startswith("optimizer") for path in files),
        **model_facts(view),
    )


def _is_of_transformers(view: FolderView) -> bool:
    """Whether one of the configurations is that of a model; one that is cut short is not."""
    configs = []
    for path in (CONFIG, ADAPTER_CONFIG, PIPELINE):
        with contextlib.suppress(CheckpointCorruptError):
            configs.append(view.optional_object(path, RECORD))
    return any(_OF_TRANSFORMERS.intersection(config) for config in configs)


def _check_parts(view: FolderView) -> None:
    """Raise `CheckpointCorruptError` unless all that a saved model consists of is there."""
    if _SENTENCE_CONFIG in view.files and MODULES not in view.files:
        msg = f"{MODULES} is missing, which sentence-transformers writes last"
        raise CheckpointCorruptError(msg)
    for folder in _components(view):
        if not any(path.startswith(f"{folder}/") for path in view.files):
            msg = f"the folder {folder} is missing"
            raise CheckpointCorruptError(msg)
    check_json_files(view)
    if not check_tensor_files(view, view.files):
        msg = "it has no weights"
        raise MayBeAllError(msg)
    if is_trainer_folder(view.name) and not view.settled:
        msg = f"{TRAINER_STATE} is missing, which the HF Trainer writes last"
        raise MayBeAllError(msg)


def pretrained_files(view: FolderView) -> tuple[str, ...]:
    """Those at the top that such libraries write, and those in the folders of components.

    A folder with a model may also hold logs, and folders with other checkpoints.
    """
    inside: tuple[str, ...] = ()
    with contextlib.suppress(CheckpointCorruptError):  # the check says it
        inside = tuple(f"{folder}/" for folder in _components(view))
    return tuple(sorted(p for p in view.files if is_own_name(p) or p.startswith(inside)))


def is_own_name(path: str) -> bool:
    """Whether a file at the top of a folder with a model may be of it, and not a log."""
    if "/" in path or _RESULTS.fullmatch(path):
        return False
    tensors = is_weights(path) or _STATES.fullmatch(path) is not None
    return tensors or path.endswith(_OWN_SUFFIXES)


def _components(view: FolderView) -> list[str]:
    """Folders that a list of components names: each must be there."""
    named: list[str] = []
    if MODULES in view.files:
        listed = _list_of_modules(view)
        named += [
            each["path"]
            for each in listed
            if isinstance(each, dict)
            and isinstance(each.get("path"), str)
            and each["path"]
            and not str(each.get("type", "")).endswith("Normalize")
        ]
    pipeline = view.optional_object(PIPELINE, RECORD)
    named += [
        name
        for name, what in pipeline.items()
        if isinstance(what, list) and what and isinstance(what[0], str) and name[:1] != "_"
    ]
    return named


def _list_of_modules(view: FolderView) -> list[Any]:
    try:
        value = parse_json(view.read_whole(MODULES, RECORD), RECORD)
    except CheckpointCorruptError as error:
        msg = f"{MODULES} is not whole: {error}"
        raise CheckpointCorruptError(msg) from error
    return value if isinstance(value, list) else []
