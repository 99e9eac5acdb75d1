"""Long work: training runs that survive interruption."""
