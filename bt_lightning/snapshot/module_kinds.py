"""What classes of modules are: whether torch's code alone says their state, and who shards them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

_OWN_DUMPS: Final = ("state_dict", "_save_to_state_dict")


class ModuleKind(NamedTuple):
    """What a class of modules is."""

    stock: bool
    """Whether only torch's code says what its state is."""
    sharded: bool
    """Whether FSDP2 shards it."""
    flat: bool
    """Whether it is FSDP1's wrapper, whose parameters are parts of a flat one."""
    distributed: bool
    """Whether it is DDP's wrapper."""
    extra: bool
    """Whether it has more state than tensors."""


_KINDS: Final[WeakKeyDictionary[type, ModuleKind]] = WeakKeyDictionary()


def kind_of(kind: type[torch.nn.Module]) -> ModuleKind:
    """What a class of modules is; looked at once."""
    found = _KINDS.get(kind)
    if found is None:
        found = _KINDS[kind] = _look_at(kind)
    return found


def _look_at(kind: type[torch.nn.Module]) -> ModuleKind:
    module = torch.nn.Module
    names = {base.__name__ for base in kind.__mro__}  # a torch without distributed lacks them
    dumps = [getattr(kind, name) for name in _OWN_DUMPS]
    return ModuleKind(
        all(map(_of_torch, dumps)),
        "FSDPModule" in names,
        "FullyShardedDataParallel" in names,
        "DistributedDataParallel" in names,
        kind.get_extra_state is not module.get_extra_state,
    )


def has_stock_hooks(module: torch.nn.Module) -> bool:
    """Whether only torch's hooks change what a module says its state is."""
    if not (module._state_dict_hooks or module._state_dict_pre_hooks):
        return True
    hooks = [*module._state_dict_hooks.values(), *module._state_dict_pre_hooks.values()]
    return all(map(_of_torch, hooks))


def _of_torch(function: Any) -> bool:
    hook = getattr(function, "hook", function)  # torch wraps a hook that is given the module
    return (getattr(hook, "__module__", None) or "").split(".")[0] == "torch"


def reshard(module: torch.nn.Module) -> None:
    """Let FSDP2 modules have their sharded parameters, which a forward without backward replaces.

    Called on every rank before the state is read; frees memory, and runs no collective.
    """
    for part in module.modules():
        if kind_of(type(part)).sharded:
            part.reshard()  # type: ignore[operator]


def is_fsdp1(module: torch.nn.Module) -> bool:
    """Whether FSDP1 shards a module, or a part of it."""
    stack: list[torch.nn.Module | None] = [module]
    while stack:  # `modules` makes names, too
        part = stack.pop()
        if part is not None:
            if kind_of(type(part)).flat:
                return True
            stack += part._modules.values()
    return False


def has_stock_state(modules: Iterable[torch.nn.Module]) -> bool:
    """Whether the state of the modules is their tensors, live, and no code says otherwise."""
    parts = list(modules)
    kinds = [kind_of(kind) for kind in set(map(type, parts))]
    plain = all(kind.stock and not kind.flat and not kind.extra for kind in kinds)
    return plain and all(map(has_stock_hooks, parts))
