"""A model whose parts lie on all processes, by FSDP2 in Lightning: `python examples/fsdp2.py`.

Each process saves its own parts, and one commit makes a checkpoint of them. Nothing is gathered,
and it loads on any number of processes. On one machine `python examples/fsdp2.py --devices 8`. On
two machines, on each of them: `torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d
--rdzv-endpoint HOST:29400 examples/fsdp2.py --nodes 2 --devices 8`. On Baseten, in `run.sh`:
`bt-lightning run --elastic --nproc-per-node $BT_NUM_GPUS -- python fsdp2.py --nodes $BT_GROUP_SIZE
--devices $BT_NUM_GPUS`. Stop it at any time, and start it again: also with other numbers.

    epoch 1: loss 0.4574
    epoch 2: loss 0.2800
    ...
    trained 160 steps
"""

from __future__ import annotations

import ddp
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from typing_extensions import override


class Sharded(ddp.Net):
    @override
    def configure_model(self) -> None:
        """Every process: keep a part of each weight; Lightning may call it again."""
        if not self.is_sharded:
            self.is_sharded = True
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    is_sharded = False


if __name__ == "__main__":
    ddp.main(lambda processes: ModelParallelStrategy(processes, 1), Sharded)
