"""The record of a checkpoint's protection: who protected it, why, when, and its deployments."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

from bt_lightning.file_limits import RECORD, parse_json

_MAX_CHARS = 500
"""Characters of each text that a person writes."""


@dataclass(frozen=True, slots=True)
class ModelDeployment:
    """A model that a checkpoint was deployed as."""

    model: str
    by: str = ""
    at: str = ""
    """ISO 8601 time in UTC."""


@dataclass(frozen=True, slots=True)
class Protection:
    """Protects a checkpoint from deletion by any rule, command or job."""

    by: str = ""
    why: str = ""
    at: str = ""
    """ISO 8601 time in UTC."""
    deployments: tuple[ModelDeployment, ...] = ()
    """The models that it is deployed as."""

    @property
    def reason(self) -> str:
        """Who protected it, when and why, and what it is deployed as; for messages."""
        own = " ".join(part for part in (f"by {self.by or 'somebody'}", self.at, self.why) if part)
        said = [own] if self.is_own else []
        return ", ".join(
            [
                *said,
                *(
                    f"deployed as {one.model}" + (f" by {one.by}" if one.by else "")
                    for one in self.deployments
                ),
            ]
        )

    @property
    def is_own(self) -> bool:
        """Whether a person protected it, besides its deployments."""
        return bool(self.by or self.why or self.at) or not self.deployments

    def deployed(self, deployment: ModelDeployment) -> Protection:
        """This protection, and that of a deployment; a model of that name takes its place."""
        others = [one for one in self.deployments if one.model != deployment.model]
        return replace(self, deployments=(*others, deployment))

    def undeployed(self, model: str | None) -> Protection | None:
        """What is left without the deployment as `model`, or without all; None if nothing is."""
        left = tuple(one for one in self.deployments if model not in {None, one.model})
        return replace(self, deployments=left) if left or self.is_own else None

    def to_bytes(self) -> bytes:
        """The record as one line of JSON."""
        cut: dict[str, object] = {
            name: getattr(self, name)[:_MAX_CHARS] for name in ("by", "why", "at")
        }
        if self.deployments:
            cut["deployments"] = [
                {name: text[:_MAX_CHARS] for name, text in asdict(one).items()}
                for one in self.deployments
            ]
        return json.dumps(cut, sort_keys=True).encode("ascii") + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Protection:
        """Parse a record; one that cannot be read has empty fields, and still protects."""
        try:
            fields = parse_json(data, RECORD)
            texts = {name: fields.get(name, "") for name in ("by", "why", "at")}
            told = fields.get("deployments", ())
            found = [_deployment(one) for one in told if isinstance(one, dict)]
        except (ValueError, AttributeError, TypeError):
            return cls()
        own = {name: str(text)[:_MAX_CHARS] for name, text in texts.items()}
        return cls(**own, deployments=tuple(found))


def _deployment(fields: dict[str, object]) -> ModelDeployment:
    texts = [str(fields.get(name, ""))[:_MAX_CHARS] for name in ("model", "by", "at")]
    return ModelDeployment(*texts)
