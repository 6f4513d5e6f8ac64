"""How runs, rounds, tasks, uploads and slices move on: what the API and the worker do beyond one query."""
