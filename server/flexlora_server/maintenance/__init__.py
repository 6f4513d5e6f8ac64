"""What keeps a coordinator's data safe: the check at the start, `verify`, `backup` and `restore`."""
