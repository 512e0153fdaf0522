"""The weights of a `peft` adapter, by the names of `adapter_model.safetensors`.

`peft` makes them from the state dictionary of the whole model, and may ask the Hugging Face Hub for
the base's configuration: more than a save may cost. It is asked once, and its tensors are found in
the model again.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

_Place = tuple[dict[str, Any], str]
"""The parameters or buffers of one module, and a name among them."""


class AdapterWeights:
    """The active adapter of a `PeftModel`; used on the training thread."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._adapter: str | None = None
        self._places: dict[str, tuple[_Place, int]] = {}
        self._embeddings: bool | None = None
        """Whether `peft` saves the embeddings as well; None if it need not be asked again."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Name -> tensor of any shape and device; copies none."""
        active = active_adapter(self._model)
        if active == self._adapter:
            found = self._found()
            if found is not None:
                return found
            if self._embeddings is not None:
                return _asked(self._model, self._adapter, self._embeddings)
        self._adapter = active
        weights = _asked(self._model, self._adapter, "auto")
        self._places, self._embeddings = _places(self._model, weights), None
        if self._places.keys() != weights.keys():  # some are computed
            without = _asked(self._model, self._adapter, embeddings=False)
            self._embeddings = without.keys() != weights.keys()
        return weights

    def _found(self) -> dict[str, torch.Tensor] | None:
        """The tensors where they were; None if one is another."""
        if not self._places or self._embeddings is not None:
            return None
        found = {}
        for name, ((owned, own_name), identity) in self._places.items():
            tensor = owned.get(own_name)
            if tensor is None or id(tensor) != identity:
                return None
            found[name] = tensor.detach()
        return found


def active_adapter(model: Any) -> str:
    """Name of the adapter of a `PeftModel` that is saved, the first of those that are active."""
    active = model.active_adapter
    names = [active] if isinstance(active, str) else [*active, *model.peft_config]
    return str(names[0])


def _asked(model: Any, adapter: Any, embeddings: bool | str) -> dict[str, torch.Tensor]:  # noqa: FBT001
    found: dict[str, torch.Tensor] = sys.modules["peft"].get_peft_model_state_dict(
        model, adapter_name=adapter, save_embedding_layers=embeddings
    )
    return found


def _places(
    model: torch.nn.Module, weights: dict[str, torch.Tensor]
) -> dict[str, tuple[_Place, int]]:
    """Where the weights lie in the model, of those that do."""
    names = {_memory(tensor): name for name, tensor in weights.items()}
    found = {}
    for place, tensor in _owned(model):
        name = names.get(_memory(tensor))
        if name is not None:
            found[name] = (place, id(tensor))
    return found


def _owned(model: torch.nn.Module) -> Iterator[tuple[_Place, torch.Tensor]]:
    for part in model.modules():
        for owned in (part._parameters, part._buffers):  # noqa: SLF001 - without walking names
            for name, tensor in owned.items():
                if tensor is not None and not tensor.is_meta:
                    yield (owned, name), tensor


def _memory(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
