"""Forms of rows: which columns make which kind of example."""
