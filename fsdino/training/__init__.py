"""Long work: what both training stages share. Runs survive interruption."""
