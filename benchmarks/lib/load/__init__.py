"""Load on a coordinator, and what is measured beside it."""
