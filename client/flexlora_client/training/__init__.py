"""Local training of a participant: data, the training loop, evaluation. `contract` is the plug-in point."""
