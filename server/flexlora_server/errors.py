"""The coordinator's exceptions.

    Refusal                 a request is answered with a problem (RFC 9457)
    StartupError            the coordinator cannot start; the sentence says what to run or repair
    LeaseLost               a worker's aggregation belongs to another worker now
    Stopping                a worker was asked to end in the middle of an aggregation
    Conflict                a row has changed since it was read; the caller may try again
    AggregationError        these tensors cannot be aggregated (non-finite, wrong shape, overflow, no convergence)
        PluginUnusable      a strategy or filter that no installed package offers, or one that cannot be loaded
    UnsupportedRun          this strategy cannot serve a run defined like that (raised at run creation)

`error_handlers` turns them into answers. Workers and whatever only reads the database use this module without the web framework.
"""

from collections.abc import Mapping
from typing import Any

from flexlora_shared.problems import Code, Problem


class Refusal(Exception):
    """Answers the request with the problem `code`; `context` goes into the body, `headers` onto the response."""

    def __init__(self, code: Code, detail: str, *, headers: Mapping[str, str] | None = None, **context: Any) -> None:
        super().__init__(detail)
        self.problem = Problem.of(code, detail, **context)
        self.headers = dict(headers or {})


class StartupError(Exception):
    """The coordinator cannot start; the message says what to do."""


class LeaseLost(Exception):
    """The aggregation was taken over, or its round left AGGREGATING."""


class Stopping(Exception):
    """The worker was asked to end; the round is given back."""


class Conflict(Exception):
    """A row has changed since it was read; nothing was written."""


class AggregationError(Exception):
    """Tensors, weights or ranks that cannot become a global update; the message says which and why."""


class PluginUnusable(AggregationError):
    """The installation lacks a strategy or a filter, or cannot load it: no run's and no upload's fault."""


class UnsupportedRun(Exception):
    """A strategy refuses a run's definition; the message says what to change."""
