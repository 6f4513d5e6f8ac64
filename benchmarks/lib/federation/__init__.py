"""Federations of real processes on real data."""
