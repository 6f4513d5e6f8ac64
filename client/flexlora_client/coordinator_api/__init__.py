"""The coordinator's REST interface: one typed method a call, over the only files that import the HTTP library."""
