"""The agent: its loop, the work folder of a run, transfers that resume after a lost connection."""
