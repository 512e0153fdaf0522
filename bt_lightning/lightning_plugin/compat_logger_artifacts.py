"""Loggers that upload checkpoints look for files, and are given our directories.

Each goes through what a `ModelCheckpoint` holds after a save, or at the end of a run. What it did
with a file is done here with a directory that is committed: the same artifact, metadata and
aliases. `uploads` says when, for saves that are under way.
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
"""Where MLflow's artifacts lie with older releases of Lightning."""
_SETTINGS = (
    "monitor",
    "mode",
    "save_last",
    "save_top_k",
    "save_weights_only",
    "_every_n_train_steps",
)
"""Of a `ModelCheckpoint`, in what a logger writes of it."""


@dataclass(frozen=True)
class LoggedCheckpoint:
    """A checkpoint that a logger is to have, as its `ModelCheckpoint` spoke of it then."""

    path: str
    score: float | None
    is_best: bool
    kind: str
    """Class of the `ModelCheckpoint`."""
    settings: dict[str, Any]
    step: int | None
    """Of its newest save."""

    @property
    def aliases(self) -> list[str]:
        """Lightning's own."""
        return ["latest", "best"] if self.is_best else ["latest"]

    @property
    def committed(self) -> float | None:
        """When what lies there was committed, in seconds since 1970; None if nothing does."""
        try:
            return (Path(self.path) / MANIFEST).stat().st_mtime
        except OSError:
            return None

    def metadata(self, title: str) -> dict[str, Any]:
        """Lightning's own."""
        named = {"score": self.score, "original_filename": Path(self.path).name}
        return {**named, title: self.settings}


def shots(callback: Any) -> Iterator[LoggedCheckpoint]:
    """What `callback` has saved, wherever that is; as Lightning's `_scan_checkpoints`."""
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
class _Way:
    """How one class of loggers takes checkpoints."""

    scan: str
    """Its method that goes through those of a `ModelCheckpoint`."""
    give: Callable[[Any, LoggedCheckpoint], None]
    opens: bool = False
    """Whether that method opens what it finds, and fails where there is no file."""


def give(logger: Any, shot: LoggedCheckpoint) -> None:
    """Hand what is committed there to `logger`, unless it has it. Blocks as long as the logger."""
    committed, way = shot.committed, _way_of(logger)
    known: dict[str, float] = vars(logger).setdefault("_logged_model_time", {})
    if way is None or (committed is None and shot.path in known):
        return
    if committed is None:
        if store_paths_for(shot.path) is not None:  # else a file, or nothing, as for Lightning
            log.warning("%s is not on the disk: %s did not get it", shot.path, type(logger))
            known[shot.path] = 0.0
    elif known.get(shot.path, -1.0) < committed:
        way.give(logger, shot)
        known[shot.path] = committed


def wait_with(logger: Any, hand: Callable[[Any, LoggedCheckpoint], None]) -> None:
    """From now on `logger` has each directory by `hand`, until `wait_no_more`."""
    way = _way_of(logger)
    if way is not None and way.scan not in vars(logger):  # else it waits for each commit
        vars(logger)[way.scan] = functools.partial(_scan, way, logger, hand=hand)


def wait_no_more(logger: Any) -> None:
    """Undo `wait_with`; idempotent."""
    way = _way_of(logger)
    if way is not None and isinstance(vars(logger).get(way.scan), functools.partial):
        del vars(logger)[way.scan]


def teach_loggers() -> None:
    """Let every logger that uploads checkpoints take committed directories; idempotent."""
    for (home, name), way in _WAYS.items():
        kind = getattr(sys.modules.get(home), name, None)
        original = vars(kind).get(way.scan) if kind is not None else None
        if original is not None and not hasattr(original, "bt_original"):
            setattr(kind, way.scan, _taught(way, original))


def _taught(way: _Way, original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def scan(self: Any, checkpoint_callback: Any) -> None:
        _scan(way, self, checkpoint_callback)

    scan.bt_original = original  # type: ignore[attr-defined]
    return scan


def _scan(
    way: _Way, logger: Any, callback: Any, hand: Callable[[Any, LoggedCheckpoint], None] = give
) -> None:
    """Let `logger` have what `callback` has saved: files as ever, directories by `hand`."""
    found = sorted(shots(callback), key=lambda shot: shot.committed or math.inf)
    if not way.opens or all(Path(shot.path).is_file() for shot in found):
        _stock(logger, way)(logger, callback)
    for shot in found:
        hand(logger, shot)


def _stock(logger: Any, way: _Way) -> Callable[..., None]:
    """The logger's own method, which knows files only."""
    method: Any = getattr(type(logger), way.scan)
    return cast("Callable[..., None]", getattr(method, "bt_original", method))


def _way_of(logger: Any) -> _Way | None:
    ways = (_WAYS.get((kind.__module__, kind.__name__)) for kind in type(logger).__mro__)
    return next((way for way in ways if way is not None), None)


def _files(path: str) -> Iterator[tuple[str, str]]:
    """(path inside, path on the disk) of all that is committed there."""
    for name in (*(entry.path for entry in read_manifest(Path(path)).files), MANIFEST):
        yield name, str(Path(path) / name)


def _to_wandb(logger: Any, shot: LoggedCheckpoint) -> None:
    """One artifact; the directory has the name of the file, which code that loads it has."""
    import wandb

    if not logger._checkpoint_name:
        logger._checkpoint_name = f"model-{logger.experiment.id}"
    artifact = wandb.Artifact(
        name=logger._checkpoint_name, type="model", metadata=shot.metadata(shot.kind)
    )
    policy = getattr(logger, "add_file_policy", None)  # not in Lightning 2.4
    more = {} if policy is None else {"policy": policy}
    for name, file in _files(shot.path):
        artifact.add_file(file, name=f"model.ckpt/{name}", **more)
    logger.experiment.log_artifact(artifact, aliases=shot.aliases)


def _to_mlflow(logger: Any, shot: LoggedCheckpoint) -> None:
    """The directory, and beside it what says which it is."""
    import yaml  # of Lightning's own needs

    stock: Any = _stock(logger, _Way(_SCAN, _to_mlflow))
    parent = _OLD_FOLDER if _OLD_FOLDER in inspect.unwrap(stock).__code__.co_consts else ""
    folder = parent + Path(shot.path).name.removesuffix(".ckpt")
    logger.experiment.log_artifact(logger._run_id, shot.path, folder)
    with tempfile.TemporaryDirectory(prefix="bt_lightning-") as place:
        text = yaml.dump(shot.metadata("Checkpoint"), default_flow_style=False)
        (Path(place) / "metadata.yaml").write_text(text)
        (Path(place) / "aliases.txt").write_text(str(shot.aliases))
        logger.experiment.log_artifacts(logger._run_id, place, folder)


def _to_lightning(logger: Any, shot: LoggedCheckpoint) -> None:
    """A model, which may be a directory."""
    from litlogger import Model

    experiment = logger._require_experiment()
    version = logger._model_version(None, shot.step)
    experiment[logger._checkpoint_name or experiment.name] = Model(shot.path, version=version)


def _to_neptune(logger: Any, shot: LoggedCheckpoint) -> None:
    """Each file below the name of the checkpoint; it is gone from Lightning with its service."""
    from neptune.types import File

    def field(name: str) -> str:
        return cast("str", logger._construct_path_with_prefix(f"model/{name}"))

    if not logger._log_model_checkpoints:
        return
    for name, file in _files(shot.path):
        with Path(file).open("rb") as stream:
            place = f"checkpoints/{Path(shot.path).name.removesuffix('.ckpt')}/{name}"
            logger.run[field(place)] = File.from_stream(stream)
    if shot.is_best:
        logger.run[field("best_model_path")] = shot.path
        if shot.score is not None:
            logger.run[field("best_model_score")] = shot.score


_SCAN = "_scan_and_log_checkpoints"
_WAYS = {
    (f"{root}.loggers.{module}", name): way
    for root in ("lightning.pytorch", "pytorch_lightning")
    for module, name, way in (
        ("wandb", "WandbLogger", _Way(_SCAN, _to_wandb)),
        ("mlflow", "MLFlowLogger", _Way(_SCAN, _to_mlflow)),
        ("litlogger", "LitLogger", _Way(_SCAN, _to_lightning)),
        ("neptune", "NeptuneLogger", _Way("after_save_checkpoint", _to_neptune, opens=True)),
    )
} | {
    ("wandb.integration.lightning.fabric.logger", "WandbLogger"): _Way(
        "_scan_and_log_pytorch_checkpoints", _to_wandb
    )
}
"""Module and class of a logger -> how it takes a directory."""
