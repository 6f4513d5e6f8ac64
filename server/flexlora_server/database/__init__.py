"""The database: its schema, connections, transactions and queries. Imports neither the web framework nor PyTorch."""
