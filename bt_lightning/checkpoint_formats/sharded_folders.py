"""Folders that several ranks write: torch.distributed.checkpoint (DCP) and DeepSpeed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.checkpoint_formats.names_in_paths import epoch_of_name, step_of_name
from bt_lightning.checkpoint_formats.results import Whole
from bt_lightning.checkpoint_formats.tensor_file_checks import (
    MayBeAllError,
    UnknownContentError,
    check_torch_file,
)
from bt_lightning.checkpoint_formats.top_level_entries import facts_of_state, field_of
from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_limits import RECORD
from bt_lightning.path_layout import safe_parts
from bt_lightning.tensor_files.pickle_interpreter import PickledValue, TooLargeError
from bt_lightning.tensor_files.safe_unpickle import MOST_BYTES, unpickle

if TYPE_CHECKING:
    from bt_lightning.checkpoint_formats.folder_view import FolderView

METADATA: Final = ".metadata"
SHARD_SUFFIX: Final = ".distcp"
LATEST: Final = "latest"
DEEPSPEED: Final = "deepspeed"
"""The format of a folder of DeepSpeed."""
_LIGHTNING_META: Final = "meta.pt"
_RANKED: Final = re.compile(r"(.*?(?:zero_pp|bf16_zero_pp|mp|layer|expp)_rank_)(\d+)(_.*)")


def distributed_folders(view: FolderView) -> list[str]:
    """The folders with shards of DCP; the empty name is the folder itself."""
    shards = {p.rpartition("/")[0] for p in view.files if p.endswith(SHARD_SUFFIX)}
    named = {p.rpartition("/")[0] for p in view.files if p.rpartition("/")[2] == METADATA}
    return sorted(shards | named)


def check_distributed(view: FolderView) -> Whole:
    """A folder of `torch.distributed.checkpoint.save`, or of Lightning's FSDP strategy.

    Raises:
        CheckpointCorruptError: something is missing.
    """
    names = check_distributed_files(view, "")
    step, epoch = step_of_name(view.name), epoch_of_name(view.name)
    if _LIGHTNING_META in view.files:
        facts = facts_of_state(check_torch_file(view, _LIGHTNING_META).value)
        step, epoch = facts.step or step, facts.epoch or epoch
    elif view.name.endswith(".ckpt"):
        msg = f"{_LIGHTNING_META} is missing, which Lightning writes last"
        raise CheckpointCorruptError(msg)
    parts = {part for name in names for part in name.split(".")[:2]}
    resumable = any(part.startswith("optim") for part in parts)
    return Whole(
        format="dcp",
        files=tuple(sorted(view.files)),
        step=step,
        epoch=epoch,
        resumable=resumable,
    )


def check_distributed_files(view: FolderView, folder: str) -> list[str]:
    """Check the shards in `folder`, and return the names of what was saved, as far as known.

    Raises:
        CheckpointCorruptError: the metadata, written last, are missing, or a shard is too short.
    """
    inside = f"{folder}/" if folder else ""
    metadata = f"{inside}{METADATA}"
    shards = [p for p in view.files if p.endswith(SHARD_SUFFIX) and p.rpartition("/")[0] == folder]
    if metadata not in view.files:
        msg = f"{metadata} is missing, which is written last"
        first = any(path.rpartition("/")[2].startswith("__0_") for path in shards)
        raise (CheckpointCorruptError if first else MayBeAllError)(msg)  # of another node's ranks
    if view.times is not None:
        late = [p for p in shards if view.times[p] > view.times[metadata]]
        if late:
            msg = f"{late[0]} is newer than {metadata}: a save over an older one was broken off"
            raise CheckpointCorruptError(msg)
    if view.files[metadata] > MOST_BYTES:
        return []
    try:
        value = unpickle(view.read(metadata, 0, view.files[metadata]))
    except TooLargeError:
        return []
    except Exception as error:
        msg = f"{metadata} is not whole: {type(error).__name__}: {error}"
        raise CheckpointCorruptError(msg) from error
    for path, end in _ends_of_shards(value).items():
        if not safe_parts(path):
            msg = f"{metadata} names {path!r}, which is no file beside it"
            raise CheckpointCorruptError(msg)
        found = view.files.get(f"{inside}{path}")
        if found is None or found < end:
            has = "is missing" if found is None else f"has {found} bytes of at least {end}"
            msg = f"{inside}{path} {has}, which {metadata} names"
            raise (MayBeAllError if found is None else CheckpointCorruptError)(msg)
    saved = field_of(value, "state_dict_metadata")
    keys = saved.pairs[0::2] if isinstance(saved, PickledValue) and saved.pairs else []
    return [key for key in keys if isinstance(key, str)]


def _ends_of_shards(metadata: Any) -> dict[str, int]:
    """File -> end of the last byte that the metadata place in it."""
    stored = field_of(metadata, "storage_data")
    ends: dict[str, int] = {}
    for info in stored.pairs[1::2] if isinstance(stored, PickledValue) and stored.pairs else []:
        path, offset = field_of(info, "relative_path"), field_of(info, "offset")
        length = field_of(info, "length")
        if isinstance(path, str) and type(offset) is int and type(length) is int:
            ends[path] = max(ends.get(path, 0), offset + length)
    return ends


def is_deepspeed_state(name: str) -> bool:
    """Whether DeepSpeed gives this name to the state of one of its ranks."""
    return name.endswith(("_model_states.pt", "_optim_states.pt"))


def check_deepspeed(view: FolderView) -> tuple[str, ...]:
    """The files that DeepSpeed's `latest`, written last, leads to; each is whole.

    Raises:
        CheckpointCorruptError: something is missing.
    """
    tag = _tag(view)
    files = [path for path in view.files if path.startswith(f"{tag}/")]
    states = [path for path in files if is_deepspeed_state(path)]
    if not any("model_states" in path for path in states):
        msg = f"the states of the model are missing in {tag}, which {LATEST} names"
        raise CheckpointCorruptError(msg)
    _check_ranks(states)
    optimizers = sum("optim_states" in path for path in states)
    for path in states:
        saved = check_torch_file(view, path).value
        ranks = field_of(saved, "dp_world_size") if "model_states" in path else None
        if isinstance(ranks, int) and 0 < optimizers < ranks:
            msg = f"{optimizers} of the states of {ranks} optimizers are there"
            raise MayBeAllError(msg)
    late = [p for p in states if view.times is not None and view.times[p] > view.times[LATEST]]
    if late:
        msg = f"{late[0]} is newer than {LATEST}: a save over an older one was broken off"
        raise CheckpointCorruptError(msg)
    return tuple(sorted(files))


def _tag(view: FolderView) -> str:
    if LATEST not in view.files:
        msg = f"{LATEST} is missing, which DeepSpeed writes last, beside the folder"
        first = any("model_states" in path for path in view.files)
        raise (CheckpointCorruptError if first else MayBeAllError)(msg)  # of another node's ranks
    tag = view.read_whole(LATEST, RECORD).decode(errors="replace").strip()
    if not safe_parts(tag):
        msg = f"{LATEST} names no folder"
        raise CheckpointCorruptError(msg)
    return tag


def check_deepspeed_folder(view: FolderView) -> Whole:
    """A folder of DeepSpeed's `save_checkpoint`: what `latest` leads to, not the older ones.

    Raises:
        CheckpointCorruptError: something is missing.
        UnknownContentError: the file `latest` is another program's.
    """
    if not any(is_deepspeed_state(path) for path in view.files):
        msg = "nothing in it is DeepSpeed's"
        raise UnknownContentError(msg)
    files = check_deepspeed(view)
    tag = files[0].split("/")[0]
    states = [path for path in files if "model_states" in path]
    facts = facts_of_state(check_torch_file(view, states[0]).value)
    top = [path for path in view.files if "/" not in path]
    return Whole(
        format=DEEPSPEED,
        files=tuple(sorted([*top, *files])),
        step=facts.step or step_of_name(tag) or step_of_name(view.name),
        epoch=facts.epoch or epoch_of_name(view.name),
        resumable=any("optim_states" in path for path in files),
    )


def _check_ranks(states: list[str]) -> None:
    """Of each kind of file there is one for each rank below the highest."""
    ranks: dict[tuple[str, str], set[int]] = {}
    for path in states:
        found = _RANKED.fullmatch(path)
        if found is not None:
            ranks.setdefault((found[1], found[3]), set()).add(int(found[2]))
    for (start, end), own in ranks.items():
        missing = sorted(set(range(max(own) + 1)) - own)
        if missing:
            msg = f"{start}{missing[0]}{end} is missing, which its rank writes"
            raise MayBeAllError(msg)
