"""The teacher's problem: a known answer, participants trained side by side, the grid of cells and its tables."""
