"""Rounds to aggregate, ways to aggregate them, and what each costs."""
