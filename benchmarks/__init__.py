"""Measurements on real input and under load; `scripts/bench` runs them. They print what they measured and end with JSON."""
