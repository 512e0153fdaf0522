"""The interactive explorer of checkpoints, their files and tensors, in a terminal or a browser.

In come a job's checkpoints and keys; out go screens. It only reads, never runs code from a file,
and reads on a thread so that the screen stays responsive. Start reading at `explorer`, then
`screens`.
"""
