"""The aggregation strategies: one module a rule, and the registry that knows them by name."""
