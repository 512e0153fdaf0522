"""Lightning's DDP on several processes, saved and resumed: `python examples/ddp.py`.

On one machine that is all: it starts `--devices` processes. On two machines, on each of them:
`torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29400
examples/ddp.py --nodes 2 --devices 8`. On Baseten, in `run.sh`: `bt-lightning run --elastic
--nproc-per-node $BT_NUM_GPUS -- python ddp.py --nodes $BT_GROUP_SIZE --devices $BT_NUM_GPUS`.
All nodes share the directory of the checkpoints. Stop it at any time, and start it again.

    epoch 1: loss 0.4574
    epoch 2: loss 0.2800
    ...
    trained 160 steps
"""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from plain_loop import make_model, moons
from torch.utils.data import DataLoader

from bt_lightning import BTLightning

if TYPE_CHECKING:
    from collections.abc import Callable


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = make_model()

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        points, side = batch
        loss = torch.nn.functional.binary_cross_entropy_with_logits(self.net(points), side)
        self.log("loss", loss, on_epoch=True, sync_dist=True)
        return loss

    def on_train_epoch_end(self) -> None:
        loss = self.trainer.callback_metrics["loss_epoch"]
        if self.trainer.is_global_zero:
            print(f"epoch {self.current_epoch + 1}: loss {loss:.4f}", flush=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def main(strategy: Callable[[int], Any] = lambda _: "ddp", model: type[Net] = Net) -> None:
    """Train `model` on a number of processes; the other examples of strategies call this."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--nodes", type=int, default=1)
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    L.seed_everything(7, verbose=False)
    trainer = L.Trainer(
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        devices=args.devices,
        num_nodes=args.nodes,
        strategy=strategy(args.devices * args.nodes),
        max_epochs=4,
        callbacks=[BTLightning(interval=1)],  # or $BT_CHECKPOINT_DIR
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model(), DataLoader(moons(1280), batch_size=16, shuffle=True))
    if trainer.is_global_zero:
        print(f"trained {trainer.global_step} steps")


if __name__ == "__main__":
    main()
