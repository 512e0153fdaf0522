"""The Lightning side: a callback, a checkpoint IO, and what wires them into a Trainer."""
