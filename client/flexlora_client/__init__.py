"""The FlexLoRA agent and the command line over the coordinator's REST interface."""
