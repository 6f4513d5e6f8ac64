"""What can go wrong in aggregation, as exceptions.

Exception
├── AggregationError   these tensors cannot be aggregated (non-finite, wrong shape, overflow, no convergence)
└── UnsupportedRun     this strategy cannot serve a run defined like that (raised at run creation)
"""


class AggregationError(Exception):
    """Tensors, weights or ranks that cannot become a global update; the message says which and why."""


class UnsupportedRun(Exception):
    """A strategy refuses a run's definition; the message says what to change."""
