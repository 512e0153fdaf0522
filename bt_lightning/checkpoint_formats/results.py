"""What a look at a folder or a file says."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """A checkpoint of which nothing is missing."""

    format: str
    """`hf-trainer`, `hf-pretrained`, `peft`, `accelerate`, `lightning-ckpt`, `torch`,
    `safetensors`, `dcp` or `deepspeed`."""
    files: tuple[str, ...]
    """Posix paths of its files, in order; the folder may hold others, which are not part of it."""
    step: int = 0
    """0 if nothing tells."""
    epoch: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    base_model: str | None = None
    """The model that was trained on, if it is named."""
    adapter: bool = False
    """Whether it holds an adapter (LoRA) and not the whole model."""
    rotated: bool = True
    """Whether the program that wrote it deletes old ones by itself, as far as is known."""
    resumable: bool = False
    """Whether it has the state of an optimizer, so that training can go on with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incomplete:
    """What looks like a checkpoint of a format, but is not whole, or not yet."""

    format: str
    reason: str
    """What is missing, in a line for people."""
    files: tuple[str, ...]
    """The files that would be part of it."""
    kept_back: bool = True
    """Whether its files are of no use as they are; not if all that is there may be all there was
    to come, such as a configuration alone."""
