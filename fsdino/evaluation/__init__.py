"""Numbers: metrics and the loop that computes them."""
