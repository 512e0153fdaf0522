"""Layers that several processes compute together: `python examples/tensor_parallel.py`.

Two processes share each layer (tensor parallelism); with more of them, `--devices 4`, such pairs
also divide the weights by FSDP2. Each process saves its own parts, one commit makes a checkpoint
of them, and it loads on any mesh. On two machines, on each of them: `torchrun --nnodes 2
--nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29400 examples/tensor_parallel.py
--nodes 2 --devices 8`. On Baseten, in `run.sh`: `bt-lightning run --elastic --nproc-per-node
$BT_NUM_GPUS -- python tensor_parallel.py --nodes $BT_GROUP_SIZE --devices $BT_NUM_GPUS`. Stop it at
any time, and start it again.

    epoch 1: loss 0.3714
    epoch 2: loss 0.2166
    ...
    trained 320 steps
"""

from __future__ import annotations

import ddp
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from typing_extensions import override


class Parallel(ddp.Net):
    def __init__(self) -> None:
        super().__init__()
        self.net[2] = torch.nn.Identity()  # dropout would have to be alike on both

    @override
    def configure_model(self) -> None:
        """Every process: keep a part of each weight; Lightning may call it again."""
        if self.is_parallel:
            return
        self.is_parallel = True
        plan = {"0": ColwiseParallel(), "3": RowwiseParallel()}
        parallelize_module(self.net, self.device_mesh["tensor_parallel"], plan)
        if self.device_mesh["data_parallel"].size() > 1:
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    is_parallel = False


if __name__ == "__main__":
    ddp.main(lambda processes: ModelParallelStrategy(processes // 2, 2), Parallel)
