"""BANKING77 with a frozen head: the encoder, the federation in this process, the runs and their table."""
