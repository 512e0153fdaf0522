"""From the bytes of a checkpoint back to a state in memory; nothing here runs code from a file."""
