"""Stub modules of truss, for reading a config where truss is not installed."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Final, NoReturn

from bt_lightning import truss_definitions
from bt_lightning.errors import InvalidSettingError

if TYPE_CHECKING:
    from collections.abc import Collection

_OF_TRUSS_CONFIG: Final = (
    "Accelerator",
    "AcceleratorSpec",
    "DockerAuthType",
    "WeightsAuth",
    "WeightsAuthMethod",
    "WeightsSource",
)
"""Our definitions that belong in `truss.base.truss_config`; the others are `truss_train`'s."""
_NOT_OF_TRUSS: Final = ("Definition", "as_definition", "on_a_store")


def stub_modules(roots: Collection[str]) -> dict[str, ModuleType]:
    """Stub modules of the packages `roots` (`truss`, `truss_train`), by full name.

    They hold the definitions that a config needs. Functions that would talk to Baseten can be
    imported, and raise when they are called.
    """
    all_modules = _truss() | _truss_train()
    return {name: module for name, module in all_modules.items() if name.partition(".")[0] in roots}


def _truss() -> dict[str, ModuleType]:
    config = _module("truss.base.truss_config", *_OF_TRUSS_CONFIG)
    base = _module("truss.base")
    vars(base)["truss_config"] = config
    factory = _module("truss.remote.remote_factory")
    vars(factory)["RemoteFactory"] = _RemoteFactory
    remote = _module("truss.remote")
    vars(remote)["remote_factory"] = factory
    truss = _module("truss")
    vars(truss).update(base=base, remote=remote)
    return {module.__name__: module for module in (truss, base, config, remote, factory)}


def _truss_train() -> dict[str, ModuleType]:
    names = set(truss_definitions.__all__).difference(_OF_TRUSS_CONFIG, _NOT_OF_TRUSS)
    inner = _module("truss_train.definitions", *names)
    public = _module("truss_train.public_api")
    vars(public)["push"] = _push
    outer = _module("truss_train", *names, "WeightsSource")
    vars(outer).update(definitions=inner, public_api=public, push=_push)
    return {module.__name__: module for module in (outer, inner, public)}


def _module(name: str, *names: str) -> ModuleType:
    module = ModuleType(name, "Stands in for a module of truss, which is not installed.")
    module.__path__ = []  # a package: other submodules raise ModuleNotFoundError with their names
    vars(module).update({item: getattr(truss_definitions, item) for item in names})
    return module


class _RemoteFactory:
    """A stub of the class that logs in to Baseten."""

    @staticmethod
    def create(*_args: object, **_options: object) -> NoReturn:
        _needs_truss("RemoteFactory.create()")


def _push(*_args: object, **_options: object) -> NoReturn:
    _needs_truss("push()")


def _needs_truss(what: str) -> NoReturn:
    msg = f"{what} talks to Baseten, and truss, which does that, is not installed: install it"
    raise InvalidSettingError(msg)
