"""Reading a `config.py`, which means running it: the side effects that `definitions` has not."""
