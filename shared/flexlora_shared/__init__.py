"""Code that coordinator and agent share: messages, problem codes, adapter tensors, the safetensors header."""
