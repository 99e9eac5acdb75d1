"""The commands: each holds its options, its work and its tables."""
