"""The weights of a `peft` adapter, by the names of `adapter_model.safetensors`.

`peft` makes them from the state dictionary of the whole model, and may ask the Hugging Face Hub for
the base's configuration: more than a save may cost. It is asked once for the names; a save stores
the weights under those, instead of the names that the module has for them.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


class AdapterWeights:
    """The active adapter of a `PeftModel`; used on the training thread.

    Args:
        model: the `PeftModel`.
        module: what is saved, which has the model in it.
    """

    def __init__(self, model: Any, module: torch.nn.Module) -> None:
        self._model, self._module = model, module
        self._adapter: str | None = None
        self._names: dict[str, str] = {}
        self._embeddings: bool | str = "auto"
        """Whether `peft` saves the embeddings as well."""

    def names_in(self, weights: Mapping[str, Any]) -> Mapping[str, str]:
        """Name in `weights`, a state dictionary of the module -> name in the adapter's file.

        Empty if some are not in it: then the file is that of `tensors`.
        """
        active = active_adapter(self._model)
        if active != self._adapter:
            self._adapter, self._embeddings = active, "auto"
            self._names = self._found(self.tensors())
        return self._names if self._names.keys() <= weights.keys() else {}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Name -> tensor of any shape and device, as `peft` makes them; copies none."""
        ask = sys.modules["peft"].get_peft_model_state_dict
        adapter = active_adapter(self._model)
        found: dict[str, torch.Tensor] = ask(
            self._model, adapter_name=adapter, save_embedding_layers=self._embeddings
        )
        if self._embeddings == "auto":
            without = ask(self._model, adapter_name=adapter, save_embedding_layers=False)
            self._embeddings = without.keys() != found.keys()
        return found

    def _found(self, weights: Mapping[str, torch.Tensor]) -> dict[str, str]:
        """The names of the same tensors in the module; none, if one is made up."""
        wanted = {_memory(tensor): name for name, tensor in weights.items()}
        named = [
            *self._module.named_parameters(remove_duplicate=False),
            *self._module.named_buffers(remove_duplicate=False),
        ]
        found = {
            name: wanted[_memory(tensor)]
            for name, tensor in named
            if not tensor.is_meta and _memory(tensor) in wanted
        }
        return found if set(found.values()) == weights.keys() else {}


def active_adapter(model: Any) -> str:
    """Name of the adapter of a `PeftModel` that is saved, the first of those that are active."""
    active = model.active_adapter
    names = [active] if isinstance(active, str) else [*active, *model.peft_config]
    return str(names[0])


def _memory(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
