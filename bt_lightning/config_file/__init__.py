"""Reading a `config.py`, the file that `truss train push` takes.

In comes its path; out goes a checked `TrainingProject` of `bt_lightning.truss_definitions`. The
file is run with the rights of this process, which is why that side effect has a room of its own; it
must never leave stubs in `sys.modules` or entries in `sys.path`. Start reading at `load_config`.
"""
