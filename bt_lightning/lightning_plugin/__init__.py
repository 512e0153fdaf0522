"""The adapter for PyTorch Lightning: `BTLightning`, `BTCheckpointIO`, and their use by a Trainer.

Hooks of a Trainer and paths of a `ModelCheckpoint` come in; calls of `session` go out, which saves,
publishes and resumes. Nothing here may decide by what one rank alone sees, use a private name of
Lightning outside `compat*.py` (and the wrapped hooks of `ModelCheckpoint`), or block training on a
disk or a network. Start reading at `callback`, then `routed_checkpoint_io` and `save_boundary`.
"""
