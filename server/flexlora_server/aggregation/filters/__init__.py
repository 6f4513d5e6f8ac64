"""Robust re-weighting: what counts of each update where some may be faulty or hostile; one file per filter."""
