"""Checkpoints as vLLM loads them: what each of them is, where it lies, and which fit together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, cast

from bt_lightning.errors import CheckpointNotFoundError, InvalidSettingError
from bt_lightning.manage.checkpoint_kind import checkpoint_kind
from bt_lightning.manage.job_checkpoints import JoinedCheckpoints, StoreCheckpoints
from bt_lightning.manage.training_state_files import is_training_state
from bt_lightning.manage.verified_reads import open_reader
from bt_lightning.manage.vllm_truss_config import ServedCheckpoint
from bt_lightning.manage.whole_tensors import world_size
from bt_lightning.path_layout import BASE, slug
from bt_lightning.truss_definitions.weights import check_weights_url
from bt_lightning.uri import BtUri

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints
    from bt_lightning.manage.checkpoint_kind import CheckpointKind

SourceForm = Literal["auto", "bt", "store", "training-checkpoints"]
"""How a config names a checkpoint: `bt://`, the URL of its folder in the bucket, or as an artifact
of its training job. `auto`: the bucket's URL where Baseten reads such buckets, else `bt`."""
_BUCKETS: Final = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}


@dataclass(frozen=True, slots=True)
class Deployable:
    """Checkpoints that one server can load together."""

    served: tuple[ServedCheckpoint, ...]
    base_model: str | None
    """Of adapters: `namespace/model`."""
    revision: str | None
    """Of the base model."""

    @property
    def kind(self) -> str:
        """`lora`, `full` or `whisper`."""
        return self.served[0].kind

    @property
    def base_source(self) -> str | None:
        """The URL of the base model's weights."""
        if self.base_model is None or "://" in self.base_model:
            return self.base_model
        return f"hf://{self.base_model}" + (f"@{self.revision}" if self.revision else "")

    @property
    def default_name(self) -> str:
        """The name of the model, if the user gives none: the base model's, as Baseten has it."""
        if self.base_model is not None:
            return slug(self.base_model.rstrip("/").rpartition("/")[2].partition("@")[0])
        return f"{slug(self.served[0].job)}-{self.served[0].name}"


def deployable(
    found: Sequence[tuple[JobCheckpoints, CheckpointItem]],
    form: SourceForm,
    base_model: str | None = None,
) -> Deployable:
    """The checkpoints as a server loads them; several only if all are adapters of one model.

    Every file that the server reads is looked for. `base_model` replaces what adapters name.

    Raises:
        InvalidSettingError: they cannot be served together, or not by vLLM.
        CheckpointNotFoundError: one is not in the store yet, or is no model of transformers.
        CheckpointCorruptError: a file is missing, or has another size.
        StoreError: the store refused.
    """
    kinds = checkpoint_kind(found)
    if len(found) > 1 and any(kind.kind != "lora" for kind in kinds):
        names = ", ".join(f"{i.name} ({k.kind})" for (_, i), k in zip(found, kinds, strict=True))
        msg = f"{names}: only adapters are served together; deploy each other model by itself"
        raise InvalidSettingError(msg)
    served = [
        _served(source, item, kind, form) for (source, item), kind in zip(found, kinds, strict=True)
    ]
    if kinds[0].kind != "lora":
        return Deployable(tuple(served), None, None)
    base = _base_of(found, kinds) if base_model is None else _given_base(base_model)
    return Deployable(tuple(_named_apart(served)), *base)


def _served(
    source: JobCheckpoints, item: CheckpointItem, kind: CheckpointKind, form: SourceForm
) -> ServedCheckpoint:
    _check_joined(item)
    paths = [entry.path for entry in item.manifest.files]
    folder = ""
    if kind.kind == "lora":
        config = next(path for path in paths if path.rpartition("/")[2] == "adapter_config.json")
        folder = config.rpartition("/")[0]
        served = [path for path in paths if _is_of_adapter(path, folder)]
        rank = _checked_adapter(item, kind, served)
    else:
        rank = 0
        served = [path for path in paths if not is_training_state(path)]
        _check_model(item, served)
    with open_reader(source, item) as reader:
        for entry in item.manifest.files:
            if entry.path in served:
                reader.check(entry)
    name = item.manifest.checkpoint_id if item.name == "." else item.name
    node = f"rank-{item.node_rank}"
    return ServedCheckpoint(
        name=slug(name),
        kind=cast("Literal['lora', 'full', 'whisper']", kind.kind),
        source=_source_url(source, item, form),
        job=item.job,
        artifact=f"{node}/{name.removeprefix(f'{node}/')}",
        folder=folder,
        served=tuple(served),
        others=tuple(path for path in paths if path not in served),
        rank=rank,
    )


def _source_url(source: JobCheckpoints, item: CheckpointItem, form: SourceForm) -> str:
    """The URL of a checkpoint's folder; empty where the config names it as an artifact."""
    if isinstance(source, JoinedCheckpoints):
        if source.only_on_disk(item):
            msg = f"{item.name} is on this disk only: wait until it is in the store, or copy it"
            raise CheckpointNotFoundError(msg)
        source = source.store_part
    if form == "training-checkpoints":
        return ""
    url = source.store.name if isinstance(source, StoreCheckpoints) else ""
    scheme, _, rest = url.partition("://")
    readable = scheme in _BUCKETS and "***" not in url
    if form == "store" and not readable:
        msg = f"{source.name} is no bucket that Baseten reads, expected s3:// or gs://: say another"
        raise InvalidSettingError(msg)
    if readable and form != "bt":
        return f"{_BUCKETS[scheme]}://{rest}/{item.where}"
    return str(BtUri(slug(item.project), slug(item.job), item.name))


def _is_of_adapter(path: str, folder: str) -> bool:
    """Whether a server of the adapter in `folder` reads the file: not the whole model beside it."""
    within, _, name = path.rpartition("/")
    if within != folder or is_training_state(name):
        return False
    is_tensors = name.endswith((".safetensors", ".bin", ".pt", ".index.json"))
    return name.startswith("adapter_model") or not is_tensors


def _checked_adapter(item: CheckpointItem, kind: CheckpointKind, served: Sequence[str]) -> int:
    """The rank of an adapter, if vLLM serves such adapters."""
    config = kind.adapter
    if config is None:
        msg = (
            f"the adapter_config.json of {item.name} cannot be read: `checkpoints verify` says why"
        )
        raise CheckpointNotFoundError(msg)
    if not any(path.rpartition("/")[2].startswith("adapter_model") for path in served):
        msg = f"{item.name} has no adapter_model.safetensors beside its adapter_config.json"
        raise CheckpointNotFoundError(msg)
    unfit = [
        *([str(config.get("peft_type"))] if config.get("peft_type", "LORA") != "LORA" else []),
        *(name for name in ("use_dora", "modules_to_save") if config.get(name)),
    ]
    if unfit:
        msg = (
            f"{item.name} is an adapter with {' and '.join(unfit)}, which vLLM does not serve:"
            " merge it into its base model, and deploy that"
        )
        raise InvalidSettingError(msg)
    pattern = config.get("rank_pattern")
    ranks = [config.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]
    return max([rank for rank in ranks if isinstance(rank, int) and rank > 0], default=16)


def _check_joined(item: CheckpointItem) -> None:
    """Raise if the weights are in shards, which no server of models reads."""
    if item.manifest.is_sharded:
        msg = (
            f"{item.name} has its weights in shards of {world_size(item.manifest)} ranks, which"
            " vLLM does not read: join them with `bt-lightning checkpoints export --to hf`, and"
            " bring the folder to the store with `bt-lightning checkpoints copy` (docs/serving.md)"
        )
        raise CheckpointNotFoundError(msg)


def _check_model(item: CheckpointItem, served: Sequence[str]) -> None:
    if item.manifest.entry(BASE) is not None:
        msg = (
            f"{item.name} has only the weights that trained, and names its base in {BASE}: deploy a"
            " checkpoint that was saved with save_frozen=True"
        )
        raise CheckpointNotFoundError(msg)
    has_weights = any("/" not in path and path.endswith(".safetensors") for path in served)
    if "config.json" in served and has_weights:
        return
    what = "no config.json" if has_weights else "no weights as safetensors"
    msg = (
        f"{item.name} has {what}, so vLLM cannot load it: deploy a checkpoint of a `transformers`"
        " model, or serve this one by a server of your own (docs/serving.md)"
    )
    raise CheckpointNotFoundError(msg)


def _given_base(given: str) -> tuple[str, str | None]:
    """The base model that a user names, `namespace/model[@revision]` or a URL; its revision."""
    is_url = "://" in given
    why = check_weights_url(given if is_url else f"hf://{given}")
    if why is not None:
        msg = f"the base model is {given!r}, {why}"
        raise InvalidSettingError(msg)
    base, _, revision = (given, "", "") if is_url else given.partition("@")
    return base, revision or None


def _base_of(
    found: Sequence[tuple[JobCheckpoints, CheckpointItem]], kinds: Sequence[CheckpointKind]
) -> tuple[str, str | None]:
    """The base model of all adapters, and its revision."""
    bases = {(kind.base_model, _revision(kind)) for kind in kinds}
    if len(bases) > 1:
        names = ", ".join(
            f"{item.name} ({kind.base_model})" for (_, item), kind in zip(found, kinds, strict=True)
        )
        msg = f"the adapters are of several base models, {names}: deploy those of one at a time"
        raise InvalidSettingError(msg)
    base, revision = bases.pop()
    if base is None or base.count("/") != 1 or base.startswith(("/", ".")) or base.endswith("/"):
        said = "no base model" if base is None else f"the base model {base!r}"
        msg = (
            f"the adapter names {said}, expected namespace/model of the Hugging Face Hub: name it"
            " with --base-model, or the URL of its weights"
        )
        raise InvalidSettingError(msg)
    return base, revision


def _revision(kind: CheckpointKind) -> str | None:
    """The revision of the base model that an adapter names."""
    found = (kind.adapter or {}).get("revision")
    return found if isinstance(found, str) and found else None


def _named_apart(served: Sequence[ServedCheckpoint]) -> list[ServedCheckpoint]:
    """The same, with the job in the name of each whose name another has."""
    names = [one.name for one in served]
    found = [
        replace(one, name=f"{slug(one.job)}-{one.name}") if names.count(one.name) > 1 else one
        for one in served
    ]
    if len({one.name for one in found}) < len(found):
        msg = f"{', '.join(sorted(names))}: the same checkpoint is named twice"
        raise InvalidSettingError(msg)
    return found
