"""A model, data and a Trainer that are made on the spot, for scripts that train, and for tests."""

from __future__ import annotations

import hashlib
import random
import warnings
from typing import TYPE_CHECKING, Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY = 64


class Sentences(torch.utils.data.Dataset):
    """Random tokens, the same in each process."""

    def __init__(self, rows: int = 64) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(0, VOCABULARY, (rows, 8), generator=generator)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


def make_model(width: int = 16) -> LlamaForCausalLM:
    """A model that draws numbers when it trains: its attention drops out."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        attention_dropout=0.2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def make_arguments(folder: Path | str, steps: int, **more: Any) -> TrainingArguments:
    chosen = {
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "save_steps": 2,
        "logging_steps": 2,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 5,
        **more,
    }
    return TrainingArguments(str(folder), max_steps=steps, **chosen)


def masked(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A collator that draws, as one that masks words does."""
    tokens = torch.stack([row["input_ids"] for row in rows])
    mask = (torch.rand(tokens.shape) < 0.3) & (torch.tensor(random.random()) < 0.9)
    return {"input_ids": tokens.masked_fill(mask, 1), "labels": tokens}


def make_trainer(
    folder: Path | str,
    steps: int,
    callbacks: list[Any],
    kind: type[Trainer] = Trainer,
    width: int = 16,
    draws: bool = False,
    **more: Any,
) -> Trainer:
    """`draws`: its collator does."""
    warnings.filterwarnings("ignore")
    arguments = make_arguments(folder, steps, **more)
    data: dict[str, Any] = {"train_dataset": Sentences(), "eval_dataset": Sentences(8)}
    if draws:
        data["data_collator"] = masked
    return kind(make_model(width), arguments, callbacks=callbacks, **data)


def digest(model: torch.nn.Module) -> str:
    """Of all weights."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode() + tensor.numpy().tobytes())
    return found.hexdigest()
