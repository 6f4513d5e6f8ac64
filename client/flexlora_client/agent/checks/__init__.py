"""What an agent needs, checked before it declares: `doctor` runs every check, `run` those that cost little."""
