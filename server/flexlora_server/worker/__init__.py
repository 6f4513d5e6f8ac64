"""Aggregation of rounds in processes of their own, apart from the API: they meet only in the database and the storage."""
