"""The store: where committed checkpoints are published to. fsspec is used here only."""
