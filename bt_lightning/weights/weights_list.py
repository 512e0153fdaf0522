"""The `weights:` list of a `config.yaml`, or of the job in a `config.py`, checked."""

from __future__ import annotations

import posixpath
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final

from typing_extensions import override

from bt_lightning.config_file.load_config import load_config
from bt_lightning.errors import ConfigNotFoundError, InvalidSettingError
from bt_lightning.file_limits import RECORD
from bt_lightning.localdir.small_files import read_small_file
from bt_lightning.path_layout import safe_parts
from bt_lightning.truss_definitions.definition import as_definition
from bt_lightning.truss_definitions.weights import WeightsSource, check_weights_url

if TYPE_CHECKING:
    from pathlib import Path

_FILE: Final = "file://"
_MAX_SHOWN: Final = 300
_UNKNOWN_WILDCARDS: Final = frozenset("[]{}")
"""Taken literally, they would select nothing, or keep what was to be left out."""


def _check_source(value: str) -> str | None:
    if not value.startswith(_FILE):
        return check_weights_url(value)
    if value.startswith(f"{_FILE}/"):
        return None
    return "expected file:// and an absolute path: write file:///mnt/models"


class LocalWeightsSource(WeightsSource):
    """As `WeightsSource`; it may also be a `file://` URL, which only this machine can read."""

    _lax: ClassVar[bool] = True

    source: Annotated[str, _check_source]

    @override
    def _check(self) -> None:
        super()._check()
        mount = self.mount_location
        if posixpath.normpath(mount) != mount.rstrip("/") or not safe_parts(mount.strip("/")):
            msg = (
                f"mount_location is {mount[:_MAX_SHOWN]!r}, expected the plain path of a folder"
                " below '/', without '..', empty parts and control characters"
            )
            raise InvalidSettingError(msg)
        for pattern in (*(self.allow_patterns or ()), *(self.ignore_patterns or ())):
            if _UNKNOWN_WILDCARDS.intersection(pattern):
                msg = f"the pattern {pattern!r} has a bracket, expected '*', '**' and '?' only"
                raise InvalidSettingError(msg)


def read_weights(path: Path) -> list[LocalWeightsSource]:
    """The weights of a Truss's `config.yaml`, or of the job of a `config.py`, which is run.

    Raises:
        ConfigNotFoundError: there is no such file.
        InvalidSettingError: it has no weights, or one is invalid, or two have one place.
    """
    given = _of_python(path) if path.suffix == ".py" else _of_yaml(path)
    if not isinstance(given, list) or not given:
        msg = f"{path} has no list `weights:`: name its sources there, each with a mount_location"
        raise InvalidSettingError(msg)
    found = []
    for number, one in enumerate(given):
        try:
            found.append(as_definition(one, LocalWeightsSource))
        except InvalidSettingError as error:
            msg = f"{path}: weights[{number}]: {error.message}"
            raise InvalidSettingError(msg) from error
    _check_apart(path, [source.mount_location.rstrip("/") for source in found])
    return found


def _of_python(path: Path) -> list[Any]:
    return [source.model_dump(mode="json") for source in load_config(path).job.weights]


def _of_yaml(path: Path) -> object:
    import yaml

    try:
        config = yaml.safe_load(read_small_file(path, RECORD))
    except FileNotFoundError as error:
        msg = f"there is no file {path}"
        raise ConfigNotFoundError(msg) from error
    except (yaml.YAMLError, RecursionError, ValueError, OSError) as error:
        msg = f"{path} cannot be read as YAML: {error}"
        raise InvalidSettingError(msg) from error
    return config.get("weights") if isinstance(config, dict) else None


def _check_apart(path: Path, mounts: list[str]) -> None:
    """Refuse a mount in another one: each is replaced as a whole."""
    ordered = sorted(mounts, key=lambda mount: f"{mount}/")
    for one, other in pairwise(ordered):
        if f"{other}/".startswith(f"{one}/"):
            what = "is named twice" if one == other else f"lies in {one}"
            msg = f"{path}: the mount_location {other} {what}: give each source a folder of its own"
            raise InvalidSettingError(msg)
