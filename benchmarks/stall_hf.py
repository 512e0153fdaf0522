"""One run of `stall.py --case hf`, in a process of its own; prints one JSON line.

A Llama and its AdamW state of about 1.5 GB, trained by the Trainer of `transformers`. As in
`stall_run.py` with `--step wait`, a step is a wait, and an update that writes one number to each
tensor. The systems: no saves, the Trainer's own saves, and the same Trainer with the callback.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from stall_run import Stamping
from step_times import StepTimes, quiet
from tokenizers import Tokenizer, models
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from bt_lightning.hf import BTTrainerCallback
from bt_lightning.localdir.event_log import read_events

WORDS = 32_000


class Waiting(Trainer):
    """Its step waits, as for a device that computes by itself."""

    step_s = 0.1
    clock: Clock

    def training_step(self, model: torch.nn.Module, *_: Any) -> torch.Tensor:
        # no `on_step_begin` of a callback, before which a save waits: it may change the weights
        self.clock.start_step()
        time.sleep(self.step_s)
        return next(model.parameters()).detach()[0, 0]

    def _maybe_log_save_evaluate(self, *given: Any, **named: Any) -> None:
        with self.clock.saving() if self.control.should_save else contextlib.nullcontext():
            super()._maybe_log_save_evaluate(*given, **named)


class Clock(StepTimes, TrainerCallback):
    """Times of the steps, and of each save on the training thread."""

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.end()


def make_model(size: int) -> LlamaForCausalLM:
    """A Llama whose weights, with two moments each, take about `size` bytes."""
    width, layer = 1024, 4 * 1024 * 1024 + 3 * 1024 * 2816
    layers = max(1, round((size / 12 - WORDS * width) / layer))
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=width,
        intermediate_size=2816,
        num_hidden_layers=layers,
        num_attention_heads=16,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = {f"word{number}": number for number in range(WORDS)}
    model = models.WordLevel(words, unk_token="word0")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), pad_token="word1")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--system", choices=["none", "ours", "plain"], required=True)
    parser.add_argument("--size", type=int, default=1_500_000_000)
    parser.add_argument("--step-s", type=float, default=0.1)
    parser.add_argument("--every", type=int, default=80)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--dir", type=Path, required=True)
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    model, clock = make_model(options.size), Clock()
    arguments = TrainingArguments(
        str(options.dir),
        max_steps=options.steps,
        per_device_train_batch_size=1,
        save_strategy="no" if options.system == "none" else "steps",
        save_steps=options.every,
        save_total_limit=2,
        max_grad_norm=0,
        logging_steps=10**6,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    ours = BTTrainerCallback(save_at_end=False)
    optimizer = Stamping(model.parameters())
    trainer = Waiting(
        model,
        arguments,
        train_dataset=[{"input_ids": torch.zeros(1, dtype=torch.long)}] * 100_000,
        processing_class=make_tokenizer(),
        callbacks=[clock, ours] if options.system == "ours" else [clock],
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer)),
    )
    trainer.step_s, trainer.clock = options.step_s, clock
    trainer.train()
    print(json.dumps(clock.facts(lambda: told(options.dir, options.system))), flush=True)


def told(folder: Path, system: str) -> dict[str, Any]:
    if system != "ours":  # what the Trainer writes is in the page cache, and not durable
        return {}
    found = [event for event in read_events(folder) if event["event"] == "save"]
    return {
        "durable_s": [event["local_durable_s"] for event in found if event["local_durable_s"]],
        "worker_s": [event["cpu_s"] for event in found if event["local_durable_s"]],
        "guard_ms": [event["guard_ms"] for event in found],
        "decisions": [event["decision"] for event in found],
        "kinds": [event["snapshot"] for event in found],
        "snapshot_ms": [event["call_ms"] for event in found],
    }


if __name__ == "__main__":
    main()
