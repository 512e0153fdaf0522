"""Modules that stand in for truss while a config is read where truss is not installed."""

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
"""What `truss.base.truss_config` has of our definitions; `truss_train` has the others."""
_NOT_OF_TRUSS: Final = ("Definition", "as_definition", "on_a_store")


def stand_ins(roots: Collection[str]) -> dict[str, ModuleType]:
    """The modules of the packages `roots` (`truss`, `truss_train`) by their full names.

    They hold what a config needs to say what is to be run. What would talk to Baseten is there to
    be imported, and raises when it is called.
    """
    all_modules = _truss() | _truss_train()
    return {name: made for name, made in all_modules.items() if name.partition(".")[0] in roots}


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
    return {made.__name__: made for made in (truss, base, config, remote, factory)}


def _truss_train() -> dict[str, ModuleType]:
    names = set(truss_definitions.__all__).difference(_OF_TRUSS_CONFIG, _NOT_OF_TRUSS)
    inner = _module("truss_train.definitions", *names)
    public = _module("truss_train.public_api")
    vars(public)["push"] = _push
    outer = _module("truss_train", *names, "WeightsSource")
    vars(outer).update(definitions=inner, public_api=public, push=_push)
    return {made.__name__: made for made in (outer, inner, public)}


def _module(name: str, *names: str) -> ModuleType:
    made = ModuleType(name, "Stands in for a module of truss, which is not installed.")
    made.__path__ = []  # a package: what it has not is a ModuleNotFoundError that says its name
    vars(made).update({item: getattr(truss_definitions, item) for item in names})
    return made


class _RemoteFactory:
    """Would log in to Baseten."""

    @staticmethod
    def create(*_args: object, **_options: object) -> NoReturn:
        _needs_truss("RemoteFactory.create()")


def _push(*_args: object, **_options: object) -> NoReturn:
    _needs_truss("push()")


def _needs_truss(what: str) -> NoReturn:
    msg = f"{what} talks to Baseten, and truss, which does that, is not installed: install it"
    raise InvalidSettingError(msg)
