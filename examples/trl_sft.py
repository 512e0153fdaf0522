"""An adapter trained by TRL, saved and resumed: `python examples/trl_sft.py`.

Stop it at any time (Ctrl-C, kill -9), and start it again: it goes on, and ends with the same lines.
Each checkpoint is a folder that PEFT loads: the adapter, its configuration, the tokenizer.

    step 25: loss 0.40
    ...
    step 100: loss 0.38
    the capital of c is C
"""

from __future__ import annotations

import warnings
from pathlib import Path

import datasets
import torch
from peft import LoraConfig, PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer

from bt_lightning.hf import BTTrainerCallback

FOLDER = Path("trl_sft_checkpoints")
WORDS = ["[PAD]", "[EOS]", "[UNK]", "the", "of", "is", "capital", *"abcdefghij", *"ABCDEFGHIJ"]


class Report(TrainerCallback):
    def on_log(self, _, state, __, logs, **___) -> None:
        if "loss" in logs and state.global_step % 25 == 0:
            print(f"step {state.global_step}: loss {logs['loss']:.2f}", flush=True)


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "[PAD]", "eos_token": "[EOS]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def make_base() -> LlamaForCausalLM:
    """An untrained base; `from_pretrained` of a name of the Hub as well."""
    torch.manual_seed(7)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(WORDS),
        num_hidden_layers=1,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        **shape,
    )
    return LlamaForCausalLM(config)


def main() -> None:
    warnings.filterwarnings("ignore")
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    facts = [f"the capital of {small} is {small.upper()}" for small in "abcdefghij"]
    arguments = SFTConfig(
        str(FOLDER),  # or $BT_CHECKPOINT_DIR
        max_steps=100,
        per_device_train_batch_size=10,
        learning_rate=2e-2,
        save_steps=5,
        save_total_limit=2,
        logging_steps=5,
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        make_base(),
        arguments,
        train_dataset=datasets.Dataset.from_list([{"text": fact} for fact in facts]),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, modules_to_save=["embed_tokens", "lm_head"]),
        callbacks=[BTTrainerCallback(), Report()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()

    newest = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"
    model = PeftModel.from_pretrained(make_base(), newest)
    question = tokenizer("the capital of c is", return_tensors="pt")
    answer = model.generate(**question, max_new_tokens=1, do_sample=False)
    print(tokenizer.decode(answer[0]))


if __name__ == "__main__":
    main()
