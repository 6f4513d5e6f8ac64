"""What coordinator and agent both speak: messages, problem codes, the adapter's tensors, the safetensors header."""
