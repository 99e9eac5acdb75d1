"""Yardsticks: what the 4D ops are checked against, compared with and measured by."""
