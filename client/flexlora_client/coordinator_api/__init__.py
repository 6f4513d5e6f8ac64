"""A typed client of the coordinator's REST API. `http`, `presigned` and no other file import the HTTP library."""
