"""Models as graphs for other runtimes."""
