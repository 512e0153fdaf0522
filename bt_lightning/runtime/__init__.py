"""Running a job: what Baseten does around a training script, on any machine.

In come the options of the command line or a `config.py`, and the environment; out go the command's
exit code, a record of the job, and its checkpoints in the store. It must never lose a signal, leave
a process behind, or import torch. Start reading at `run_job`.
"""
