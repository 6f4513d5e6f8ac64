"""Readers: from what `--data` names to rows."""
