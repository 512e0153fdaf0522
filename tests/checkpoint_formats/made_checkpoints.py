"""Checkpoints made by the real libraries, tiny, from configurations on the spot."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import Dataset


class Lines(Dataset):
    """Eight lines of four tokens."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        tokens = torch.arange(4) + index % 4
        return {"input_ids": tokens, "labels": tokens}


def tiny_model(seed=0):
    """A causal language model of a few kilobytes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 16}
    config = LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
    return LlamaForCausalLM(config)


def adapter_of(model):
    """The model with a LoRA adapter."""
    from peft import LoraConfig, get_peft_model

    model.name_or_path = "tiny/base"
    config = LoraConfig(r=2, target_modules=["q_proj"], base_model_name_or_path="tiny/base")
    return get_peft_model(model, config)


def train(directory, model, steps=4, callbacks=(), **arguments):
    """Train with the HF Trainer; it saves at steps 2 and 4."""
    from transformers import Trainer, TrainingArguments

    given = TrainingArguments(
        output_dir=str(directory),
        max_steps=steps,
        per_device_train_batch_size=2,
        save_strategy="steps",
        save_steps=2,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **arguments,
    )
    data = {"train_dataset": Lines(), "eval_dataset": Lines()}
    trainer = Trainer(model=model, args=given, callbacks=[*callbacks], **data)
    trainer.train()
    return trainer


def fit_lightning(directory):
    """A stock ModelCheckpoint's file, with the metric in its name; returns its path."""
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.demos.boring_classes import BoringModel

    class Model(BoringModel):
        def validation_step(self, batch, batch_idx):
            loss = super().validation_step(batch, batch_idx)["x"]
            self.log("val_loss", loss)

    saved = ModelCheckpoint(dirpath=directory, filename="{epoch}-{step}-{val_loss:.2f}")
    pl.Trainer(
        max_epochs=1,
        limit_train_batches=2,
        limit_val_batches=1,
        callbacks=[saved],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    ).fit(Model())
    return saved.best_model_path


def save_distributed(directory):
    """A folder of `torch.distributed.checkpoint`, of one process."""
    import torch.distributed.checkpoint as dcp

    model = nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 7}
    dcp.save(state, checkpoint_id=str(directory), no_dist=True)


def save_deepspeed(directory, step=10, ranks=2):
    """The files that DeepSpeed's ZeRO writes, in its order; its package needs a compiler."""
    tag = directory / f"global_step{step}"
    tag.mkdir(parents=True)
    state = {"module": {"w": torch.ones(4)}, "global_steps": step, "epoch": 1}
    state["dp_world_size"] = ranks
    torch.save(state, tag / "mp_rank_00_model_states.pt")
    for rank in range(ranks):
        part = {"optimizer_state_dict": {"exp_avg": torch.ones(4) * rank}}
        torch.save(part, tag / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    (directory / "zero_to_fp32.py").write_text("print()\n")
    (directory / "latest").write_text(tag.name)
