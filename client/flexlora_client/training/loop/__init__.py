"""The agent's own training loop."""
