"""An adapter for training loops that somebody wrote without a framework.

The state of a loop (model, optimizers, schedulers, loaders, counters) comes in by name and goes to
`session`; what was saved comes back into the same objects. It must know no framework but torch.
Start reading at `checkpointer`.
"""
