"""A LoRA adapter in Lightning, saved without its base: `python examples/lora.py`.

The base is made from a tiny configuration, the same at each start; in a script of yours that line
is `AutoModelForCausalLM.from_pretrained(...)`. Checkpoints have the adapter and what else training
needs, and name the base by its digest: a restart that makes another one ends with an error. Stop it
at any time (Ctrl-C, kill -9), and start it again: it goes on, and ends with the same lines. To
begin anew, delete the folder `lora_run`.

    step 20: loss 2.38
    ...
    step 80: loss 1.43
    base 5.3 MB, checkpoint 0.2 MB
    loss of new rows 1.38
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from bt_lightning import BTLightning

ROOT = Path("lora_run")
WORDS = 32


def make_base() -> LlamaForCausalLM:
    """In place of `from_pretrained`."""
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


class Tuned(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "o_proj"])
        self.lm = get_peft_model(make_base(), config)

    def training_step(self, batch, _):
        return self.lm(input_ids=batch, labels=batch).loss

    def configure_optimizers(self):
        trained = [weight for weight in self.parameters() if weight.requires_grad]
        return torch.optim.AdamW(trained, 4e-3)


class ShowLoss(L.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):  # noqa: ARG002
        if trainer.global_step % 20 == 0:
            print(f"step {trainer.global_step}: loss {outputs['loss'].item():.2f}", flush=True)


def counts(rows: int, seed: int) -> torch.Tensor:
    """Rows that count from anywhere, in steps of 1 to 3."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(WORDS, (rows, 1), generator=generator)
    step = torch.randint(1, 4, (rows, 1), generator=generator)
    return (start + step * torch.arange(16)) % WORDS


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # no tips
    warnings.filterwarnings("ignore", module="lightning")  # nor of workers: the rows are in memory
    L.seed_everything(7, verbose=False)
    module = Tuned()
    saves = ModelCheckpoint(every_n_train_steps=10, save_top_k=2, monitor="step", mode="max")
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=80,
        callbacks=[BTLightning(ROOT), saves, ShowLoss()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(counts(1280, seed=1), batch_size=16, shuffle=True))

    newest = ROOT / "checkpoint-80"
    base = sum(weight.nbytes for weight in make_base().state_dict().values())
    print(f"base {base / 1e6:.1f} MB, checkpoint {size(newest) / 1e6:.1f} MB")
    served = PeftModel.from_pretrained(make_base(), newest).eval()
    rows = counts(100, seed=2)
    with torch.inference_mode():
        print(f"loss of new rows {served(input_ids=rows, labels=rows).loss.item():.2f}")


if __name__ == "__main__":
    main()
