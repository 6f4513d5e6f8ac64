"""Who factors the modules of a round: threads of this process, or a Ray cluster."""
