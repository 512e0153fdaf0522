"""Adds the files of `transformers` and `peft` to checkpoints, so that a model server can load them.

If the LightningModule has a `transformers` model, `model.safetensors` uses the names that
`from_pretrained` expects, and `config.json`, `generation_config.json` and the tokenizer files are
added. If that model is wrapped by `peft`, `adapter_config.json` and `adapter_model.safetensors` are
added. Neither package is imported here: a module with such a model has imported it.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bt_lightning.path_layout import ADAPTER
from bt_lightning.session.adapter_weights import AdapterWeights, active_adapter
from bt_lightning.snapshot.shared_tensors import WeightNames

if TYPE_CHECKING:
    import torch

_MODELING = "transformers.modeling_utils"
"""Where the class of every model is; `transformers` alone would import it to be asked for it."""


@dataclass(frozen=True)
class ServingFiles:
    """The files that are added to each checkpoint of one module."""

    weights_prefix: str = ""
    """Prefix of the model's weights in the module, which `model.safetensors` leaves out."""
    constant: dict[str, bytes] = field(default_factory=dict)
    """Files that do not change during training: name -> content."""
    adapter: AdapterWeights | None = None
    """The weights of a `PeftModel`'s adapter, which are written at each save."""

    def names(self, weights: object) -> WeightNames:
        """The names of `weights`, the state dictionary of one save, in its files."""
        if self.adapter is None or not isinstance(weights, dict):
            return WeightNames(self.weights_prefix)
        return WeightNames(self.weights_prefix, self.adapter.names_in(weights))

    def tensors(self, names: WeightNames) -> dict[str, dict[str, torch.Tensor]]:
        """Further safetensors files of one save: file -> name -> tensor."""
        if self.adapter is None or names.adapter:
            return {}
        return {ADAPTER: self.adapter.tensors()}


def serving_files(module: torch.nn.Module) -> ServingFiles:
    """The files for the `transformers` or `peft` model and the tokenizer of a LightningModule."""
    peft, modeling = sys.modules.get("peft"), sys.modules.get(_MODELING)
    if peft is not None:
        for _, part in module.named_modules():
            if isinstance(part, peft.PeftModel):
                config = part.peft_config[active_adapter(part)]
                constant = _saved(config, _tokenizer(module))
                return ServingFiles(constant=constant, adapter=AdapterWeights(part, module))
    if modeling is not None:
        for name, part in module.named_modules():
            if isinstance(part, modeling.PreTrainedModel):
                parts = [part.config, getattr(part, "generation_config", None), _tokenizer(module)]
                return ServingFiles(f"{name}." if name else "", _saved(*parts))
    return ServingFiles()


def _tokenizer(module: torch.nn.Module) -> Any:
    """The tokenizer or processor that is an attribute of the module, if there is one."""
    transformers = sys.modules.get("transformers")
    if transformers is None:
        return None
    kinds = (transformers.PreTrainedTokenizerBase, transformers.ProcessorMixin)
    return next((value for value in vars(module).values() if isinstance(value, kinds)), None)


def _saved(*parts: Any) -> dict[str, bytes]:
    """The files that `save_pretrained` of each part writes: name -> content."""
    with tempfile.TemporaryDirectory(prefix="bt_lightning-") as folder:
        for part in parts:
            if part is None:
                continue
            try:
                part.save_pretrained(folder)
            except Exception as error:  # noqa: BLE001 - transformers refuses odd configurations
                warnings.warn(
                    f"the files of {type(part).__name__} are left out of the checkpoints: {error}",
                    stacklevel=2,
                )
        root = Path(folder)
        return {
            file.relative_to(root).as_posix(): file.read_bytes()
            for file in sorted(root.rglob("*"))
            if file.is_file()
        }
