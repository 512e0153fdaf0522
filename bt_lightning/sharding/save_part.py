"""What one rank's part of a save is, or why there is none."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import xxhash

from bt_lightning import file_limits
from bt_lightning.errors import CheckpointCorruptError, UnsupportedStateError
from bt_lightning.file_entries import BLOCK_BYTES, FileEntry, files_from_json, files_to_json
from bt_lightning.manifest import ManifestFacts, facts_from_json, facts_to_json
from bt_lightning.path_layout import MOST_RANKS, check_checkpoint_id
from bt_lightning.sharding.versioned_json import number_within, read_versioned, refuse

FORMAT: Final = "bt_lightning.part"
VERSION: Final = 2
"""Of records whose files have smaller blocks than `BLOCK_BYTES`; the others are of version 1."""
_HEX: Final = re.compile(r"[0-9a-f]{32}")
MissingCause = Literal["full", "torn", "failed", "dropped"]
"""`full`: there was no room. `torn`: the state changed while it was copied. `dropped`: on purpose,
as the save was skipped or withdrawn."""
_CAUSES: Final[tuple[MissingCause, ...]] = ("full", "torn", "failed", "dropped")


@dataclass(frozen=True, slots=True)
class SaveKey:
    """Which save this is, the same on every rank; neither a path nor a clock."""

    run: str
    """32 lower-case hex characters that rank 0 draws when the fit starts."""
    number: int
    """Number of the save, which every rank counts, from 1."""

    @property
    def folder(self) -> str:
        """The name of the folder in which the parts of this save are gathered."""
        return f"{self.run}-{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SavePart:
    """What a rank's part of a save says besides its files; made by the training process."""

    key: SaveKey
    rank: int
    world_size: int
    fingerprint: str
    """As of `of_state`: equal on all ranks, or nothing is committed."""
    block_bytes: int = BLOCK_BYTES
    """Of its files; equal on all ranks, since the fingerprint is made of it."""

    @property
    def of_whole(self) -> tuple[str, int, int]:
        """What all parts of a save have in common."""
        return self.fingerprint, self.world_size, self.block_bytes

    def of_state(self, plan: str, step: int, block_bytes: int = BLOCK_BYTES) -> SavePart:
        """This part, of a state that is laid out by the plan of this fingerprint.

        Ranks that stand at different steps have different fingerprints.
        """
        said = f"{plan} {step}"
        if block_bytes != BLOCK_BYTES:
            said += f" {block_bytes}"
        digest = xxhash.xxh3_128_hexdigest(said.encode())
        return replace(self, fingerprint=digest, block_bytes=block_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveHead:
    """What the whole checkpoint is; rank 0's record has it."""

    checkpoint_id: str
    after: int
    """The newest generation of that id that the training process knows of."""
    facts: ManifestFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRecord:
    """One rank's part of a save, durable; or why it is not to be had."""

    part: SavePart
    host: str
    files: tuple[FileEntry, ...] = ()
    head: SaveHead | None = None
    """On rank 0."""
    missing: str = ""
    """Why this rank has no part (its disk is full, the save was skipped): nothing is committed."""
    cause: MissingCause = "failed"
    """What kind of reason that is."""

    def to_bytes(self) -> bytes:
        """The file's bytes: ASCII JSON with a digest of itself, which detects damage.

        Raises:
            UnsupportedStateError: it is too large for readers.
        """
        part, head = self.part, self.head
        document = {
            "format": FORMAT,
            "version": 1 if part.block_bytes == BLOCK_BYTES else VERSION,
            "run": part.key.run,
            "number": part.key.number,
            "rank": part.rank,
            "world_size": part.world_size,
            "fingerprint": part.fingerprint,
            "block_bytes": part.block_bytes,
            "host": self.host,
            "files": files_to_json(self.files, packed=True),
            "head": None if head is None else _head_to_json(head),
            "missing": self.missing,
            "cause": self.cause,
        }
        data = seal(document)
        try:
            file_limits.PART.check(data)
        except CheckpointCorruptError as error:
            msg = f"rank {part.rank} cannot save its part, the record is too large: {error}"
            raise UnsupportedStateError(msg) from error
        return data

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> PartRecord:
        """Parse the bytes that `to_bytes` returned; errors name `where`.

        Raises:
            FormatVersionError: it is of a newer version than this package.
            CheckpointCorruptError: anything else that is not a whole, undamaged record.
        """
        try:
            return read_versioned(data, (FORMAT, VERSION), file_limits.PART, _parse)
        except CheckpointCorruptError as error:
            msg = f"the part record {where} cannot be read: {error}"
            raise type(error)(msg) from error


def _head_to_json(head: SaveHead) -> dict[str, Any]:
    return {"id": head.checkpoint_id, "after": head.after, "facts": facts_to_json(head.facts)}


def _parse(document: dict[str, Any]) -> PartRecord:
    stated = document.pop("digest", None)
    if _digest(document) != stated:
        refuse("its content does not match its own digest")
    world_size = number_within(document["world_size"], 1, MOST_RANKS)
    key = SaveKey(_hex(document["run"]), number_within(document["number"], 1))
    part = SavePart(
        key=key,
        rank=number_within(document["rank"], 0, world_size - 1),
        world_size=world_size,
        fingerprint=_hex(document["fingerprint"]),
        block_bytes=document.get("block_bytes", BLOCK_BYTES),
    )
    head = document["head"]
    return PartRecord(
        part=part,
        host=_text(document["host"]),
        files=files_from_json(document["files"], packed=True, block_bytes=part.block_bytes),
        head=None if head is None else _head(head),
        missing=_text(document["missing"]),
        cause=_cause(document["cause"]),
    )


def _head(document: dict[str, Any]) -> SaveHead:
    return SaveHead(
        checkpoint_id=check_checkpoint_id(_text(document["id"])),
        after=number_within(document["after"], 0),
        facts=facts_from_json(document["facts"]),
    )


def seal(document: dict[str, Any]) -> bytes:
    """The bytes of a JSON object with a digest of itself, in place of one that it has."""
    plain = {key: value for key, value in document.items() if key != "digest"}
    return json.dumps({**plain, "digest": _digest(plain)}).encode("ascii") + b"\n"


def _digest(document: dict[str, Any]) -> str:
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(canonical.encode("ascii"))


def _hex(value: object) -> str:
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        refuse(f"expected 32 hex characters, found {value!r:.50}")
    return value


def _cause(value: object) -> MissingCause:
    found = next((cause for cause in _CAUSES if value == cause), None)
    if found is None:
        refuse(f"expected one of {', '.join(_CAUSES)}, found {value!r:.50}")
    return found


def _text(value: object) -> str:
    if not isinstance(value, str):
        refuse(f"expected text, found {value!r:.50}")
    return value
