"""`fsdino video`."""
