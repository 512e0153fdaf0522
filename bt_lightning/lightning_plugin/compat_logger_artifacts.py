"""Patches loggers that upload checkpoint files, so that they upload committed directories.

Such a logger scans the paths of a `ModelCheckpoint` after a save, or at the end of a run. The patch
uploads directories as the same artifact, with the same metadata and aliases. For saves in progress,
`logger_artifacts` decides when.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from bt_lightning.localdir.list_and_verify_checkpoints import read_manifest
from bt_lightning.path_layout import MANIFEST
from bt_lightning.session.bt_and_evicted_paths import store_paths_for
from bt_lightning.session.checkpoint_paths import is_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

_OLD_FOLDER = "model/checkpoints/"
"""Folder of MLflow's artifacts in older releases of Lightning."""
_SETTINGS = (
    "monitor",
    "mode",
    "save_last",
    "save_top_k",
    "save_weights_only",
    "_every_n_train_steps",
)
"""Attributes of a `ModelCheckpoint` that loggers write to the metadata."""


@dataclass(frozen=True)
class LoggedCheckpoint:
    """A checkpoint for a logger, with the score that its `ModelCheckpoint` had at that moment."""

    path: str
    score: float | None
    is_best: bool
    kind: str
    """Class of the `ModelCheckpoint`."""
    settings: dict[str, Any]
    step: int | None
    """Global step of the `ModelCheckpoint`'s newest save."""

    @property
    def aliases(self) -> list[str]:
        """The aliases that Lightning gives."""
        return ["latest", "best"] if self.is_best else ["latest"]

    @property
    def committed(self) -> float | None:
        """Time of the commit in seconds since 1970; None if nothing is committed there."""
        try:
            return (Path(self.path) / MANIFEST).stat().st_mtime
        except OSError:
            return None

    def metadata(self, title: str) -> dict[str, Any]:
        """The metadata that Lightning gives."""
        named = {"score": self.score, "original_filename": Path(self.path).name}
        return {**named, title: self.settings}


def logged_checkpoints(callback: Any) -> Iterator[LoggedCheckpoint]:
    """The checkpoints that `callback` knows, as Lightning's `_scan_checkpoints` lists them."""
    found: dict[str, Any] = {}
    if hasattr(callback, "last_model_path") and hasattr(callback, "current_score"):
        found[callback.last_model_path] = callback.current_score
    if hasattr(callback, "best_model_path") and hasattr(callback, "best_model_score"):
        found[callback.best_model_path] = callback.best_model_score
    found.update(getattr(callback, "best_k_models", {}))
    settings = {name: getattr(callback, name) for name in _SETTINGS if hasattr(callback, name)}
    for path, score in found.items():
        if path and not is_url(path):
            yield LoggedCheckpoint(
                path=str(path),
                score=score.item() if isinstance(score, Tensor) else score,
                is_best=path == callback.best_model_path,
                kind=callback.__class__.__name__,
                settings=settings,
                step=getattr(callback, "_last_global_step_saved", None),
            )


@dataclass(frozen=True)
class _LoggerUpload:
    """How one class of loggers uploads checkpoints."""

    scan: str
    """The logger's method that scans a `ModelCheckpoint`."""
    upload: Callable[[Any, LoggedCheckpoint], None]
    opens: bool = False
    """Whether that method opens each path and fails if one is no file."""


def upload_to_logger(logger: Any, checkpoint: LoggedCheckpoint) -> None:
    """Upload a committed checkpoint to `logger` unless it has it; blocks as long as the logger."""
    committed, how = checkpoint.committed, _upload_of(logger)
    known: dict[str, float] = vars(logger).setdefault("_logged_model_time", {})
    if how is None or (committed is None and checkpoint.path in known):
        return
    if committed is None:
        # otherwise it is a file or missing: as in Lightning
        if store_paths_for(checkpoint.path) is not None:
            log.warning("%s is not on the disk: %s did not get it", checkpoint.path, type(logger))
            known[checkpoint.path] = 0.0
    elif known.get(checkpoint.path, -1.0) < committed:
        how.upload(logger, checkpoint)
        known[checkpoint.path] = committed


def defer_uploads(logger: Any, upload: Callable[[Any, LoggedCheckpoint], None]) -> None:
    """Let `logger` pass each directory to `upload`, until `stop_deferring_uploads`."""
    how = _upload_of(logger)
    if how is not None and how.scan not in vars(logger):  # a user's own waits for each commit
        vars(logger)[how.scan] = functools.partial(_scan, how, logger, upload=upload)


def stop_deferring_uploads(logger: Any) -> None:
    """Undo `defer_uploads`; idempotent."""
    how = _upload_of(logger)
    if how is not None and isinstance(vars(logger).get(how.scan), functools.partial):
        del vars(logger)[how.scan]


def patch_loggers() -> None:
    """Patch every known class of loggers that uploads checkpoints; idempotent."""
    for (module, name), how in _UPLOADS.items():
        kind = getattr(sys.modules.get(module), name, None)
        original = vars(kind).get(how.scan) if kind is not None else None
        if original is not None and not hasattr(original, "bt_original"):
            setattr(kind, how.scan, _patched(how, original))


def _patched(how: _LoggerUpload, original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def scan(self: Any, checkpoint_callback: Any) -> None:
        _scan(how, self, checkpoint_callback)

    scan.bt_original = original  # type: ignore[attr-defined]
    return scan


def _scan(
    how: _LoggerUpload,
    logger: Any,
    callback: Any,
    upload: Callable[[Any, LoggedCheckpoint], None] = upload_to_logger,
) -> None:
    """Let `logger` upload the checkpoints of `callback`: files itself, directories by `upload`."""
    found = sorted(
        logged_checkpoints(callback), key=lambda checkpoint: checkpoint.committed or math.inf
    )
    if not how.opens or all(Path(checkpoint.path).is_file() for checkpoint in found):
        _original_scan(logger, how)(logger, callback)
    for checkpoint in found:
        upload(logger, checkpoint)


def _original_scan(logger: Any, how: _LoggerUpload) -> Callable[..., None]:
    """The logger's original method, which handles files only."""
    method: Any = getattr(type(logger), how.scan)
    return cast("Callable[..., None]", getattr(method, "bt_original", method))


def _upload_of(logger: Any) -> _LoggerUpload | None:
    ways = (_UPLOADS.get((kind.__module__, kind.__name__)) for kind in type(logger).__mro__)
    return next((how for how in ways if how is not None), None)


def _files(path: str) -> Iterator[tuple[str, str]]:
    """(path in the checkpoint, path on the disk) of each committed file."""
    for name in (*(entry.path for entry in read_manifest(Path(path)).files), MANIFEST):
        yield name, str(Path(path) / name)


def _to_wandb(logger: Any, checkpoint: LoggedCheckpoint) -> None:
    """One artifact; the directory is named `model.ckpt`, as the file in Lightning's artifact."""
    import wandb

    if not logger._checkpoint_name:
        logger._checkpoint_name = f"model-{logger.experiment.id}"
    artifact = wandb.Artifact(
        name=logger._checkpoint_name, type="model", metadata=checkpoint.metadata(checkpoint.kind)
    )
    policy = getattr(logger, "add_file_policy", None)  # not in Lightning 2.4
    more = {} if policy is None else {"policy": policy}
    for name, file in _files(checkpoint.path):
        artifact.add_file(file, name=f"model.ckpt/{name}", **more)
    logger.experiment.log_artifact(artifact, aliases=checkpoint.aliases)


def _to_mlflow(logger: Any, checkpoint: LoggedCheckpoint) -> None:
    """The directory, with Lightning's metadata and aliases files."""
    import yaml  # a dependency of Lightning

    stock: Any = _original_scan(logger, _LoggerUpload(_SCAN, _to_mlflow))
    parent = _OLD_FOLDER if _OLD_FOLDER in inspect.unwrap(stock).__code__.co_consts else ""
    folder = parent + Path(checkpoint.path).name.removesuffix(".ckpt")
    logger.experiment.log_artifact(logger._run_id, checkpoint.path, folder)
    with tempfile.TemporaryDirectory(prefix="bt_lightning-") as place:
        text = yaml.dump(checkpoint.metadata("Checkpoint"), default_flow_style=False)
        (Path(place) / "metadata.yaml").write_text(text)
        (Path(place) / "aliases.txt").write_text(str(checkpoint.aliases))
        logger.experiment.log_artifacts(logger._run_id, place, folder)


def _to_lightning(logger: Any, checkpoint: LoggedCheckpoint) -> None:
    """A model of litlogger, which may be a directory."""
    from litlogger import Model

    experiment = logger._require_experiment()
    version = logger._model_version(None, checkpoint.step)
    experiment[logger._checkpoint_name or experiment.name] = Model(checkpoint.path, version=version)


def _to_neptune(logger: Any, checkpoint: LoggedCheckpoint) -> None:
    """Each file, under the name of the checkpoint; newer Lightning has no Neptune logger."""
    from neptune.types import File

    def field(name: str) -> str:
        return cast("str", logger._construct_path_with_prefix(f"model/{name}"))

    if not logger._log_model_checkpoints:
        return
    for name, file in _files(checkpoint.path):
        with Path(file).open("rb") as stream:
            place = f"checkpoints/{Path(checkpoint.path).name.removesuffix('.ckpt')}/{name}"
            logger.run[field(place)] = File.from_stream(stream)
    if checkpoint.is_best:
        logger.run[field("best_model_path")] = checkpoint.path
        if checkpoint.score is not None:
            logger.run[field("best_model_score")] = checkpoint.score


_SCAN = "_scan_and_log_checkpoints"
_UPLOADS = {
    (f"{root}.loggers.{module}", name): how
    for root in ("lightning.pytorch", "pytorch_lightning")
    for module, name, how in (
        ("wandb", "WandbLogger", _LoggerUpload(_SCAN, _to_wandb)),
        ("mlflow", "MLFlowLogger", _LoggerUpload(_SCAN, _to_mlflow)),
        ("litlogger", "LitLogger", _LoggerUpload(_SCAN, _to_lightning)),
        (
            "neptune",
            "NeptuneLogger",
            _LoggerUpload("after_save_checkpoint", _to_neptune, opens=True),
        ),
    )
} | {
    ("wandb.integration.lightning.fabric.logger", "WandbLogger"): _LoggerUpload(
        "_scan_and_log_pytorch_checkpoints", _to_wandb
    )
}
"""(module, class) of a logger -> how it uploads a directory."""
