"""Durable directories on a local disk. No torch, no network."""
