"""Round trips through flwr."""
