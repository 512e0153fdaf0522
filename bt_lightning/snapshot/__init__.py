"""From a state in memory to the bytes of a checkpoint's files."""
