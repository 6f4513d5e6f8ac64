"""The aggregation rules compared by what is learned under them: the problems, the rounds in process, the grid of runs."""
