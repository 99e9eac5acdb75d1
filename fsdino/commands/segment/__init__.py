"""`fsdino segment`."""
