"""A TRL trainer of an adapter, made on the spot."""

from __future__ import annotations

import contextlib
import os
import warnings
from typing import TYPE_CHECKING, Any

import datasets
import torch
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

if TYPE_CHECKING:
    from pathlib import Path

_WORDS = ["[PAD]", "[EOS]", "[UNK]", *map(str, range(10)), "+", "="]


def make_tokenizer() -> PreTrainedTokenizerFast:
    known = Tokenizer(models.WordLevel({word: at for at, word in enumerate(_WORDS)}, "[UNK]"))
    known.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "[PAD]", "eos_token": "[EOS]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=known, **names)


def make_sft_trainer(
    folder: Path | str, steps: int, callbacks: list[Any], **more: Any
) -> SFTTrainer:
    """An adapter of a small Llama, with dropout, that learns sums."""
    warnings.filterwarnings("ignore")
    datasets.disable_progress_bars()
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(_WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    sums = [{"text": f"{a} + {b} = {(a + b) % 10}"} for a in range(8) for b in range(8)]
    chosen = {
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "save_steps": 2,
        "logging_steps": 2,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "seed": 5,
        "gradient_checkpointing": False,
        **more,
    }
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # noqa: PTH123
        return SFTTrainer(
            LlamaForCausalLM(config),
            SFTConfig(str(folder), max_steps=steps, **chosen),
            train_dataset=datasets.Dataset.from_list(sums),
            eval_dataset=datasets.Dataset.from_list(sums[:8]),
            processing_class=make_tokenizer(),
            peft_config=LoraConfig(r=4, lora_dropout=0.1, target_modules=["q_proj", "v_proj"]),
            callbacks=callbacks,
        )
