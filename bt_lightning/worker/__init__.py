"""The background process that publishes and deletes, and the training process's end of it."""
