"""Running a job: what Baseten does around a training script, on any machine."""
