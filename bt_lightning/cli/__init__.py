"""The command line `bt-lightning`.

In come arguments and environment variables; out go tables, CSV or JSON, one line for an error, and
an exit code. No command imports torch (only `export --to ckpt` does), and nothing from a file or a
store reaches the terminal unless `render.text.printable` made it harmless. Start reading at `app`.
"""
