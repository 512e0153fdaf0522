from truss_train import Image, TrainingJob, TrainingProject

project = TrainingProject(name="small", job=TrainingJob(image=Image(base_image="python:3.11")))
