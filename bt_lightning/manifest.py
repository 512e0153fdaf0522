"""The manifest: the files of a checkpoint and their digests (docs/format.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import xxhash

from bt_lightning import file_limits
from bt_lightning.errors import (
    CheckpointCorruptError,
    FormatVersionError,
    UnsupportedStateError,
)
from bt_lightning.file_entries import BLOCK_BYTES, FILE_KEYS, files_from_json, files_to_json
from bt_lightning.file_limits import parse_json
from bt_lightning.iso_time import moment
from bt_lightning.json_values import canonical, count_of, finite_or_text, time_text, typed
from bt_lightning.late_files import LateFiles, searched
from bt_lightning.path_layout import (
    SHARDS,
    check_checkpoint_id,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from bt_lightning.file_entries import FileEntry

FORMAT: Final = "bt_lightning.checkpoint"
FORMAT_VERSION: Final = 3
"""The greatest that is read. A checkpoint of parts of several ranks, which has `shards.json`, is of
version 2, or 3 if its blocks are smaller: older readers refuse it. All others are of version 1."""
_FACTS: Final = frozenset(
    ["step", "epoch", "created_at", "metrics", "origin", "resumable", "weights_prefix", "leftovers"]
)
_KEYS: Final = _FACTS | {"format", "format_version", "id", "generation", "block_bytes", "files"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestFacts:
    """What the training process knows of a checkpoint before its files are written."""

    step: int
    epoch: int
    created_at: str
    """Time, as `iso_time.moment` reads it. Informative: sort by `order`, never by a clock alone."""
    metrics: dict[str, float] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)
    """Facts: project, job, world_size, strategy, versions."""
    resumable: bool = True
    """Whether training can resume from it; False if only weights were saved."""
    weights_prefix: str = ""
    """The prefix that was removed from each name in `model.safetensors`."""
    leftovers: tuple[tuple[str, str], ...] = ()
    """(path in the state, type) of each value in `leftovers.pt`, or that was dropped."""

    def manifest(self, checkpoint_id: str, generation: int, files: Sequence[FileEntry]) -> Manifest:
        """The manifest of these facts, when the files are known."""
        facts = {name: getattr(self, name) for name in _FACTS}
        return Manifest(checkpoint_id=checkpoint_id, generation=generation, files=files, **facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest(ManifestFacts):
    """The files, facts and origin of a committed checkpoint."""

    checkpoint_id: str
    generation: int
    """Counts from 1; the same id committed again is the next generation."""
    files: Sequence[FileEntry]
    """A tuple, or `LateFiles` of what a listing found."""
    _digest: str = field(default="", init=False, compare=False, repr=False)
    """`digest`, where it is known; `replace` makes a manifest without it."""

    @property
    def order(self) -> tuple[int, int, str]:
        """Sort key: the newest checkpoint has the greatest."""
        return (self.step, self.generation, self.created_at)

    @property
    def created(self) -> datetime:
        """`created_at` as a datetime with its zone."""
        return moment(self.created_at)

    @property
    def interim(self) -> bool:
        """Whether no `ModelCheckpoint` requested it; `origin["interim"]` says what did."""
        return bool(self.origin.get("interim"))

    @property
    def fit(self) -> str:
        """Id of the fit that saved it; empty for a job's first fit without a name."""
        said = self.origin.get("fit")
        found = said.get("id", "") if isinstance(said, dict) else ""
        return found if isinstance(found, str) else ""

    @property
    def fit_folder(self) -> str:
        """Folder of its fit below the root; empty for the root itself."""
        said = self.origin.get("fit")
        folder = said.get("folder", "") if isinstance(said, dict) else ""
        return folder if isinstance(folder, str) else ""

    @property
    def fit_names(self) -> tuple[str, ...]:
        """What its fit may be called: its id, and the name that the user gave it."""
        said = self.origin.get("fit")
        name = said.get("name", "") if isinstance(said, dict) else ""
        return (self.fit, name) if isinstance(name, str) else (self.fit,)

    @property
    def format(self) -> str | None:
        """The layout of its files, if another program's (`hf-trainer`); None for our own."""
        found = self.origin.get("format")
        return found if isinstance(found, str) else None

    @property
    def is_sharded(self) -> bool:
        """Whether it is one of parts of several ranks: what is where is in `shards.json`."""
        return self.format is None and self.entry(SHARDS) is not None

    @property
    def has_parts(self) -> bool:
        """Whether several ranks wrote it, each its own files: it is sharded, or of DeepSpeed."""
        return self.is_sharded or isinstance(self.origin.get("deepspeed"), dict)

    @property
    def format_version(self) -> int:
        """1 unless it is sharded; 3 if its blocks are smaller than `BLOCK_BYTES`."""
        return (2 if self.block_bytes == BLOCK_BYTES else 3) if self.is_sharded else 1

    @property
    def block_bytes(self) -> int:
        """Size of the blocks of all its files."""
        if isinstance(self.files, LateFiles):
            return self.files.block_bytes
        return self.files[0].block_bytes if self.files else BLOCK_BYTES

    @property
    def size(self) -> int:
        """Bytes of all files, without the manifest itself."""
        if isinstance(self.files, LateFiles):
            return self.files.size
        return sum(entry.size for entry in self.files)

    @property
    def digest(self) -> str:
        """XXH3-128 of the canonical JSON: equal digests mean equal checkpoints."""
        return self._digest or xxhash.xxh3_128_hexdigest(canonical(_to_json(self)))

    def entry(self, path: str) -> FileEntry | None:
        """The entry of the file at `path`, if the checkpoint has one."""
        return next((one for one in searched(self.files, path) if one.path == path), None)

    def with_generation(self, generation: int) -> Manifest:
        """The same content as another generation of its id."""
        return replace(self, generation=generation)

    def to_bytes(self) -> bytes:
        """The file's bytes: JSON with a digest of itself, which detects damage.

        Raises:
            UnsupportedStateError: it is too large for readers.
            ValueError: `created_at` is no valid time, or its files have blocks of several sizes.
        """
        moment(self.created_at)
        _check_blocks(self)
        payload = _to_json(self)
        payload["digest"] = self.digest
        data = (json.dumps(payload, indent=1) + "\n").encode("ascii")
        try:
            file_limits.MANIFEST.check(data)
        except CheckpointCorruptError as error:
            msg = f"{self.checkpoint_id} cannot be saved, its manifest is too large: {error}"
            raise UnsupportedStateError(msg) from error
        return data

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Manifest:
        """Parse the bytes that `to_bytes` returned; errors name `where`.

        Raises:
            FormatVersionError: the format is newer than this package.
            CheckpointCorruptError: anything else that is not a whole, undamaged manifest.
        """
        try:
            payload = parse_json(data, file_limits.MANIFEST)
        except CheckpointCorruptError as error:
            msg = f"the manifest {where} is damaged: {error}"
            raise CheckpointCorruptError(msg) from error
        if not isinstance(payload, dict) or payload.get("format") != FORMAT:
            msg = f"the manifest {where} is damaged: expected a JSON object of format {FORMAT!r}"
            raise CheckpointCorruptError(msg)
        version = payload.get("format_version")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            msg = f"the manifest {where} is damaged: format_version is {version!r}"
            raise CheckpointCorruptError(msg)
        if version > FORMAT_VERSION:
            msg = (
                f"the checkpoint {where} has format version {version}, this bt_lightning reads up"
                f" to {FORMAT_VERSION}: upgrade bt_lightning to load it"
            )
            raise FormatVersionError(msg)
        stated = payload.pop("digest", None)
        if xxhash.xxh3_128_hexdigest(canonical(payload)) != stated:
            msg = f"the manifest {where} is damaged: its content does not match its own digest"
            raise CheckpointCorruptError(msg)
        try:
            return with_digest(_from_json(payload), stated if _is_exact(payload) else "")
        except CheckpointCorruptError:
            raise
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
            msg = f"the manifest {where} is damaged: {type(error).__name__} {error}"
            raise CheckpointCorruptError(msg) from error


def facts_to_json(facts: ManifestFacts) -> dict[str, Any]:
    """The facts as a manifest and a part record have them."""
    return {
        "step": facts.step,
        "epoch": facts.epoch,
        "created_at": facts.created_at,
        "metrics": {name: finite_or_text(value) for name, value in facts.metrics.items()},
        "origin": facts.origin,
        "resumable": facts.resumable,
        "weights_prefix": facts.weights_prefix,
        "leftovers": [list(pair) for pair in facts.leftovers],
    }


def facts_from_json(payload: dict[str, Any]) -> ManifestFacts:
    """What `facts_to_json` was given; other keys are ignored.

    Raises:
        ArithmeticError, AttributeError, KeyError, TypeError, ValueError: it is none of that.
    """
    return ManifestFacts(**_facts_of(payload))


def manifest_from_json(payload: dict[str, Any], files: Sequence[FileEntry]) -> Manifest:
    """The manifest of these files, with the facts of `payload`; raises as `facts_from_json`."""
    return Manifest(
        checkpoint_id=check_checkpoint_id(typed(str, payload["id"])),
        generation=count_of(payload["generation"], least=1),
        files=files,
        **_facts_of(payload),
    )


def _facts_of(payload: dict[str, Any]) -> dict[str, Any]:
    return {
        "step": count_of(payload["step"]),
        "epoch": count_of(payload["epoch"]),
        "created_at": time_text(payload["created_at"]),
        "metrics": {typed(str, name): float(value) for name, value in payload["metrics"].items()},
        "origin": typed(dict, payload["origin"]),
        "resumable": typed(bool, payload["resumable"]),
        "weights_prefix": typed(str, payload["weights_prefix"]),
        "leftovers": tuple(
            (typed(str, path), typed(str, kind)) for path, kind in payload["leftovers"]
        ),
    }


def _to_json(manifest: Manifest) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "format_version": manifest.format_version,
        "id": manifest.checkpoint_id,
        "generation": manifest.generation,
        **facts_to_json(manifest),
        "block_bytes": manifest.block_bytes,
        "files": files_to_json(manifest.files, packed=manifest.is_sharded),
    }


def _from_json(payload: dict[str, Any]) -> Manifest:
    size, version = payload["block_bytes"], payload["format_version"]
    if (size == BLOCK_BYTES) == (version > 2):  # noqa: PLR2004 - a version
        msg = f"block_bytes is {size!r} in format_version {version}"
        raise ValueError(msg)
    files = files_from_json(payload["files"], packed=version > 1, block_bytes=size)
    manifest = manifest_from_json(payload, files)
    if manifest.format_version != payload["format_version"]:
        msg = (
            f"format_version is {payload['format_version']}, expected {manifest.format_version} of"
            f" a checkpoint {'with' if manifest.is_sharded else 'without'} {SHARDS}"
        )
        raise ValueError(msg)
    return manifest


def with_digest(manifest: Manifest, digest: str) -> Manifest:
    """The new `manifest`, of which the digest is known; it is computed when asked for if empty."""
    object.__setattr__(manifest, "_digest", digest)
    return manifest


def _is_exact(payload: dict[str, Any]) -> bool:
    """Whether `_to_json` of the manifest that was read from `payload` has the same text.

    Other programs may add keys, which are ignored, or write numbers in other ways.
    """
    return (
        payload.keys() == _KEYS
        and all(item.keys() == FILE_KEYS for item in payload["files"])
        and all(type(value) is float for value in payload["metrics"].values())
    )


def _check_blocks(manifest: Manifest) -> None:
    found = {each.block_bytes for each in manifest.files}
    if len(found) > 1 or (not manifest.is_sharded and found - {BLOCK_BYTES}):
        msg = f"{manifest.checkpoint_id} has files with blocks of {sorted(found)} bytes"
        raise ValueError(msg)
