"""Metrics of a slice on held-out examples."""
