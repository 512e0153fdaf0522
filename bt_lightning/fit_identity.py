"""What tells one fit of a job from another, as the script gives it without knowing. Pure.

A value is "" (or missing) where it is not known: what is not known differs from nothing. Values of
hyperparameters are digests, since they may be secrets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from bt_lightning.errors import CheckpointCorruptError

_MOST: Final = 512
"""Entries of a mapping, and characters of a value, that are read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitIdentity:
    """One fit: what is trained, how, on what, and where in the script."""

    model: str = ""
    """Class of the module, and digest of its parameters' names and shapes."""
    hyperparameters: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Name -> digest of the value, without those that say where and on which machines it runs."""
    data: str = ""
    """Digest of what the training data hold: lengths, indices of subsets, first and last values."""
    writes: str = ""
    """Folders that the script's own callbacks write to, without dates and the like."""
    place: str = ""
    """File and function that call `fit`, and a digest of the lines that led there."""
    limits: Mapping[str, str] = field(default_factory=dict, hash=False)
    """How long and how it trains: `max_epochs`, `max_steps`, `accumulate_grad_batches`."""
    seed: str = ""
    """The seed that the script set, if it did."""
    program: str = ""
    """Digest of the script and its arguments: while it is the same, nobody edited them."""

    def differences(self, other: FitIdentity) -> tuple[str, ...]:
        """Names of what both know and have differently; of a mapping, the entries' names."""
        found = []
        for each in fields(FitIdentity):
            mine, its = getattr(self, each.name), getattr(other, each.name)
            if isinstance(mine, str):
                found += [each.name] if mine and its and mine != its else []
            elif mine and its:
                names = sorted(mine.keys() | its.keys())
                found += [f"{each.name}.{n}" for n in names if mine.get(n) != its.get(n)]
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """The entries that are known."""
        values = {each.name: getattr(self, each.name) for each in fields(FitIdentity)}
        return {name: dict(v) if isinstance(v, Mapping) else v for name, v in values.items() if v}

    @classmethod
    def from_json(cls, payload: object) -> FitIdentity:
        """The identity of `to_json`; entries that are not known are left out.

        Raises:
            CheckpointCorruptError: it is none; a `ValueError`.
        """
        if not isinstance(payload, dict):
            msg = f"expected the identity of a fit, found {type(payload).__name__}"
            raise CheckpointCorruptError(msg)
        known: dict[str, Any] = {}
        for each in fields(cls):
            value = payload.get(each.name)
            if value is None:
                continue
            if each.name in {"hyperparameters", "limits"}:
                known[each.name] = _texts(each.name, value)
            else:
                known[each.name] = _text(each.name, value)
        return cls(**known)


def _texts(name: str, value: object) -> dict[str, str]:
    if not isinstance(value, dict) or len(value) > _MOST:
        msg = f"{name} of a fit: expected at most {_MOST} entries, found {type(value).__name__}"
        raise CheckpointCorruptError(msg)
    return {_text(name, key): _text(name, each) for key, each in value.items()}


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > _MOST:
        msg = f"{name} of a fit: expected a text of at most {_MOST} characters"
        raise CheckpointCorruptError(msg)
    return value
