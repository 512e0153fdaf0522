"""The explorer: checkpoints, their files and tensors, on one screen, without a mouse."""
