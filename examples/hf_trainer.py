"""The Trainer of transformers, saved and resumed: `python examples/hf_trainer.py`.

Stop it at any time (Ctrl-C, kill -9), and start it again: it goes on, and ends with the same lines.

    step 100: loss 0.50
    ...
    step 400: loss 0.00
    3 1 4 1 backwards: 1 4 1 3
"""

from __future__ import annotations

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from bt_lightning.hf import BTTrainerCallback

LENGTH, DIGITS, BAR = 4, 10, 10
STEPS = 400


class Reversed(torch.utils.data.Dataset):
    """Some digits, a bar, and the same digits the other way round, which are to be learned."""

    def __init__(self, rows: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        digits = torch.randint(0, DIGITS, (rows, LENGTH), generator=generator)
        bar = torch.full((rows, 1), BAR)
        self.tokens = torch.cat([digits, bar, digits.flip(1)], 1)
        self.labels = self.tokens.clone()
        self.labels[:, : LENGTH + 1] = -100  # what is given is not to be predicted

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[row], "labels": self.labels[row]}


class Report(TrainerCallback):
    def on_log(self, _, state, __, logs, **___) -> None:
        if "eval_loss" in logs:
            print(f"step {state.global_step}: loss {logs['eval_loss']:.2f}", flush=True)


def make_model() -> LlamaForCausalLM:
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=DIGITS + 1,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        attention_dropout=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


def main() -> None:
    torch.set_num_threads(1)
    arguments = TrainingArguments(
        "hf_trainer_checkpoints",  # or $BT_CHECKPOINT_DIR
        max_steps=STEPS,
        per_device_train_batch_size=32,
        learning_rate=1e-2,
        save_steps=20,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=100,
        logging_steps=20,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        make_model(),
        arguments,
        train_dataset=Reversed(20_000, seed=0),
        eval_dataset=Reversed(200, seed=1),
        callbacks=[BTTrainerCallback(), Report()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()

    question = torch.tensor([[3, 1, 4, 1, BAR]])
    answer = trainer.model.generate(question, max_new_tokens=LENGTH, do_sample=False)
    print("3 1 4 1 backwards:", *answer[0, -LENGTH:].tolist())


if __name__ == "__main__":
    main()
