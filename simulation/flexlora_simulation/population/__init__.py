"""Who takes part: which examples each participant has, what it affords, and how long it takes."""
