"""The teacher's problem: participants trained side by side, the grid of cells and its tables."""
