"""The `config.yaml` of a Truss that serves checkpoints with vLLM, as plain values. Pure.

The keys are those of Truss; nothing is written that its own loader does not take, but `bt://`
sources, which Baseten documents and truss 0.18 refuses.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from bt_lightning.errors import InvalidSettingError
from bt_lightning.path_layout import MANIFEST, slug
from bt_lightning.truss_definitions.deployment import DEPLOYED_CHECKPOINTS

if TYPE_CHECKING:
    from collections.abc import Sequence

IMAGE: Final = "vllm/vllm-openai:latest"
"""The image that Baseten's own template names."""
_PORT: Final = 8000
_CONCURRENCY: Final = 256
_BASE: Final = "/models/base"
_RANKS: Final = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM makes room for."""
_AT_ONCE: Final = 8
"""Adapters in the memory of the GPU; the others wait in that of the host."""
_MANY: Final = 40
"""More file names are not listed one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedCheckpoint:
    """One checkpoint as a server loads it."""

    name: str
    """By which requests name an adapter."""
    kind: Literal["lora", "full", "whisper"]
    source: str
    """The URL of its folder, or `""`: it comes as an artifact of its training job."""
    job: str
    artifact: str
    """Its folder below the job's, `rank-<node>/<checkpoint>`."""
    folder: str = ""
    """The folder in it that has the model; empty for itself."""
    served: tuple[str, ...]
    """Paths of the files that the server reads."""
    others: tuple[str, ...] = ()
    """Paths of the other files."""
    rank: int = 0
    """Of an adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingOptions:
    """What a user chooses."""

    model_name: str
    base_source: str | None = None
    """URL of the base model's weights, for adapters."""
    accelerator: str = "H100"
    gpus: int = 1
    image: str = IMAGE
    hf_secret: str | None = None
    """Name of the secret with the token for the base model."""
    bucket_secret: str | None = None
    """Name of the secret with the credentials for the checkpoints' bucket."""
    vllm_args: str = ""

    @property
    def slug(self) -> str:
        """The name of the model by which requests name it."""
        return slug(self.model_name)


def vllm_truss_config(
    checkpoints: Sequence[ServedCheckpoint], options: ServingOptions
) -> dict[str, Any]:
    """The config that serves `checkpoints`: one model, or adapters of one base model.

    Raises:
        InvalidSettingError: an option cannot stand in a start command, or a rank is too large.
    """
    adapters = [one for one in checkpoints if one.kind == "lora"]
    whisper = checkpoints[0].kind == "whisper"
    endpoint = "/v1/audio/transcriptions" if whisper else "/v1/chat/completions"
    words = _adapter_words(adapters, options) if adapters else _model_words(checkpoints[0], options)
    config: dict[str, Any] = {
        "model_name": options.model_name,
        "model_metadata": {"tags": ["openai-compatible"]},
        "base_image": {"image": options.image},
        "docker_server": {
            "start_command": shlex.join([*words, *_own_words(options.vllm_args)]),
            "server_port": _PORT,
            "predict_endpoint": endpoint,
            "readiness_endpoint": "/health",
            "liveness_endpoint": "/health",
        },
        "resources": {"accelerator": _accelerator(options), "use_gpu": True},
        "runtime": {"predict_concurrency": _CONCURRENCY},
        "environment_variables": {"VLLM_LOGGING_LEVEL": "WARNING"},
    }
    if whisper:
        config["requirements"] = ["vllm[audio]"]
    weights = [_base_weights(options)] if adapters else []
    weights += [_weights(one, options) for one in checkpoints if one.source]
    if weights:
        config["weights"] = weights
    artifacts = [one for one in checkpoints if not one.source]
    if artifacts:
        config["training_checkpoints"] = {
            "download_folder": DEPLOYED_CHECKPOINTS,
            "artifact_references": [
                {"training_job_id": one.job, "paths": [f"{one.artifact}/"]} for one in artifacts
            ],
        }
    return config


def place_of(checkpoint: ServedCheckpoint) -> str:
    """The folder of the model in the container."""
    if checkpoint.source:
        mounted = _mount(checkpoint)
    else:
        mounted = f"{DEPLOYED_CHECKPOINTS}/{checkpoint.job}/{checkpoint.artifact}"
    return f"{mounted}/{checkpoint.folder}" if checkpoint.folder else mounted


def _adapter_words(adapters: Sequence[ServedCheckpoint], options: ServingOptions) -> list[str]:
    most = max(one.rank for one in adapters)
    room = next((rank for rank in _RANKS if rank >= most), None)
    if room is None:
        msg = f"an adapter has rank {most}, and vLLM serves ranks of {_RANKS[-1]} at most"
        raise InvalidSettingError(msg)
    words = [
        *_serve(_BASE, options),
        "--enable-lora",
        *("--max-lora-rank", str(room), "--max-loras", str(min(len(adapters), _AT_ONCE))),
        *("--max-cpu-loras", str(len(adapters))),
        *("--lora-modules", *(f"{one.name}={place_of(one)}" for one in adapters)),
    ]
    template = _template(adapters[0]) if len(adapters) == 1 else None
    return [*words, "--chat-template", template] if template else words


def _model_words(model: ServedCheckpoint, options: ServingOptions) -> list[str]:
    template = _template(model)
    more = ["--chat-template", template] if template else []
    return [*_serve(place_of(model), options), *more]


def _serve(place: str, options: ServingOptions) -> list[str]:
    return [
        *("vllm", "serve", place, "--port", str(_PORT)),
        *("--served-model-name", options.slug),
        *("--tensor-parallel-size", str(options.gpus)),
    ]


def _template(checkpoint: ServedCheckpoint) -> str | None:
    """VLLM does not look for the chat template beside the weights by itself."""
    name = f"{checkpoint.folder}/chat_template.jinja".lstrip("/")
    return f"{place_of(checkpoint)}/chat_template.jinja" if name in checkpoint.served else None


def _own_words(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        msg = f"--vllm-args cannot be split into words: {error}"
        raise InvalidSettingError(msg) from error
    if any("%" in word or not word.isprintable() for word in words):
        msg = "--vllm-args has a '%' or a control character, which a start command cannot hold"
        raise InvalidSettingError(msg)
    return words


def _accelerator(options: ServingOptions) -> str:
    return options.accelerator if options.gpus == 1 else f"{options.accelerator}:{options.gpus}"


def _mount(checkpoint: ServedCheckpoint) -> str:
    return f"/models/{checkpoint.name}"


def _base_weights(options: ServingOptions) -> dict[str, Any]:
    assert options.base_source is not None
    found: dict[str, Any] = {"source": options.base_source, "mount_location": _BASE}
    is_hub = options.base_source.startswith("hf://")
    return {**found, **_auth(options.hf_secret if is_hub else options.bucket_secret)}


def _weights(checkpoint: ServedCheckpoint, options: ServingOptions) -> dict[str, Any]:
    found: dict[str, Any] = {
        "source": checkpoint.source,
        "mount_location": _mount(checkpoint),
    }
    if not checkpoint.source.startswith("bt://"):
        found |= _auth(options.bucket_secret)
    if checkpoint.kind == "lora" and len(checkpoint.served) <= _MANY:
        found["allow_patterns"] = list(checkpoint.served)
    else:
        found["ignore_patterns"] = sorted({MANIFEST, *checkpoint.others})
    return found


def _auth(secret: str | None) -> dict[str, Any]:
    if secret is None:
        return {}
    return {"auth": {"auth_method": "CUSTOM_SECRET", "auth_secret_name": secret}}
