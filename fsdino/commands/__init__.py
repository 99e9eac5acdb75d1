"""The commands: each with its options, its work and its tables."""
