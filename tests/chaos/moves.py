"""The allowed changes of state, written down independently of the product."""

RUN = frozenset({
    ("DRAFT", "RUNNING"), ("RUNNING", "PAUSED"), ("PAUSED", "RUNNING"), ("RUNNING", "COMPLETED"), ("PAUSED", "COMPLETED"),
    ("RUNNING", "FAILED"), ("PAUSED", "FAILED"), ("FAILED", "RUNNING"), ("DRAFT", "CANCELLED"), ("RUNNING", "CANCELLED"),
    ("PAUSED", "CANCELLED"), ("FAILED", "CANCELLED"),
})  # fmt: skip
ROUND = frozenset({
    ("", "OPEN"), ("", "AGGREGATING"), ("OPEN", "COLLECTING"), ("OPEN", "ABANDONED"), ("COLLECTING", "AGGREGATING"),
    ("COLLECTING", "ABANDONED"), ("AGGREGATING", "PUBLISHED"), ("AGGREGATING", "ABANDONED"), ("AGGREGATING", "FAILED"),
    ("FAILED", "AGGREGATING"), ("FAILED", "ABANDONED"),
})  # fmt: skip
UPLOAD = frozenset({("", "OPEN"), ("OPEN", "ACCEPTED"), ("OPEN", "CANCELLED")})
