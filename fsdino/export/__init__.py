"""Models without Python: exported graphs, and the runtimes that run them."""
