"""The interactive explorer of checkpoints, their files and tensors, in a terminal or a browser.

In come a job's checkpoints and keys; out go panes, and calls of `manage` that were confirmed. It
never runs code from a file. It reads, and acts, on threads, so that the screen stays responsive.
Start reading at `explorer`, then `main_screen` and `action_flows`.
"""
