"""A transformers model in a LightningModule: `python examples/lightning_hf_finetune.py`.

Stop it at any time (Ctrl-C, kill -9), and start it again: it goes on, and ends with the same
lines. Each checkpoint holds all that the training needs, and is a folder that `from_pretrained`
loads: weights, `config.json`, tokenizer. To begin anew, delete the folder `hf_finetune_run`.

    epoch 1: 50.0% right
    ...
    epoch 6: 100.0% right
    "the plot was not dull": good
    "the end was not fresh": bad
"""

from __future__ import annotations

import itertools
import logging
import warnings
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    pipeline,
)

from bt_lightning import BTLightning

FOLDER = Path("hf_finetune_run")
THINGS = ["film", "plot", "end", "cast", "music", "light", "sound", "story", "scene", "script"]
GOOD = ["great", "fresh", "warm", "funny", "clever", "moving"]
BAD = ["dull", "slow", "cold", "loud", "silly", "empty"]
SAID = ["was", "was not", "is", "is not", "was never", "is never"]


class Classifier(L.LightningModule):
    def __init__(self, base: str) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        names = {"bad": 0, "good": 1}
        self.model = AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=2, label2id=names, id2label={at: name for name, at in names.items()}
        )

    def training_step(self, batch, _):
        return self.model(**batch).loss

    def validation_step(self, batch, _):
        answers = self.model(**batch).logits.argmax(-1)
        self.log("right", (answers == batch["labels"]).float().mean(), batch_size=len(answers))

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            right = self.trainer.callback_metrics["right"]
            print(f"epoch {self.current_epoch + 1}: {right:.1%} right", flush=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def opinions() -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Sentences, and whether they praise; every fifth is for testing."""
    rows = [
        (f"the {thing} {said} {word}", int((word in GOOD) == (said in {"was", "is"})))
        for thing, said, word in itertools.product(THINGS, SAID, GOOD + BAD)
    ]
    return [row for at, row in enumerate(rows) if at % 5], rows[::5]


def small_base(folder: Path) -> str:
    """An untrained base model in a folder; `Classifier` takes a name of the Hub as well."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *THINGS, *GOOD, *BAD, "the"]
    words += sorted({word for said in SAID for word in said.split()})
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, "[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(vocab_size=len(words), intermediate_size=64, pad_token_id=0, **shape)
    BertForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # no tips
    warnings.filterwarnings("ignore", module="lightning")  # nor of workers: the rows are in memory
    base = small_base(FOLDER / "base")
    L.seed_everything(7, verbose=False)
    module = Classifier(base)

    def batch_of(rows):
        texts, labels = zip(*rows, strict=True)
        batch = module.tokenizer(list(texts), padding=True, return_tensors="pt")
        return {**batch, "labels": torch.tensor(labels)}

    best = ModelCheckpoint(monitor="right", mode="max", save_top_k=2)
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=FOLDER,
        max_epochs=6,
        callbacks=[BTLightning(), best],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    learned, tested = opinions()
    trainer.fit(
        module,
        DataLoader(learned, batch_size=16, shuffle=True, collate_fn=batch_of),
        DataLoader(tested, batch_size=64, collate_fn=batch_of),
    )
    classify = pipeline("text-classification", best.best_model_path, device="cpu")
    for text in ["the plot was not dull", "the end was not fresh"]:
        print(f'"{text}": {classify(text)[0]["label"]}')


if __name__ == "__main__":
    main()
