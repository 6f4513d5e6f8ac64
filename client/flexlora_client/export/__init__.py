"""Results in the forms that other programs load: a PEFT folder, a merged model, an adapter in GGUF; each with a model card."""
