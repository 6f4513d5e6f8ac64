"""The page docs/evidence.md, from the files in evidence/ alone."""
