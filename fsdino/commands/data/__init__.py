"""`fsdino data`."""
