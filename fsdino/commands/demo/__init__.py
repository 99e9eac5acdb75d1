"""`fsdino demo`."""
