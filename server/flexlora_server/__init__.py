"""The FlexLoRA coordinator."""
