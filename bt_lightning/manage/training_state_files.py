"""Files of a checkpoint that only training reads, by their names in each layout. Pure."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from bt_lightning.glob_patterns import matches
from bt_lightning.path_layout import BASE, LEFTOVERS, MANIFEST, PROTECTION, SHARDS, STATE, TREE

TRAINING_PATTERNS: Final = (
    *(STATE, TREE, LEFTOVERS, BASE, MANIFEST, PROTECTION),
    *("optimizer.pt", "optimizer.bin", "optimizer_*.bin", "scheduler.pt", "scheduler_*.bin"),
    *("scaler.pt", "rng_state*.pth", "random_states_*.pkl", "sampler*.bin"),
    *("training_args.bin", "trainer_state.json", "**/*.tfevents.*", "**/events.out.tfevents.*"),
    *("global_step*/**", "latest", "zero_to_*.py", "pytorch_model_fsdp_*/**", "optimizer_*/**"),
    "**/*.distcp",
)
"""Patterns of these files, as `glob_patterns` has them."""


SHARDED_PATTERNS: Final = (SHARDS, "shard-*-of-*.safetensors", "ranks/**")
"""Patterns of what a sharded checkpoint of ours has for all ranks."""


@lru_cache(maxsize=1024)  # asked for each of the many tensors of a file
def is_training_state(path: str, *, has_parts: bool = False) -> bool:
    """Whether only training reads the file `path`; a checkpoint of several ranks has more such."""
    patterns = TRAINING_PATTERNS + SHARDED_PATTERNS * has_parts
    return any(matches(pattern, path) for pattern in patterns)
