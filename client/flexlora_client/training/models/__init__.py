"""Loads the base model, puts slices into it, and tells what of it a run can train."""
