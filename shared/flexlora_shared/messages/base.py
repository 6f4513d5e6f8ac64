"""The base class of all messages, and the field types that they share."""

from collections.abc import Callable
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")

# Strict mode refuses a JSON list for a tuple; the container alone is lax, its items stay strict.
Tuple = Annotated[tuple[T, ...], Field(strict=False)]

RunName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
TensorName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$", max_length=256)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$")]  # no control characters: PostgreSQL stores no NUL
MetricName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.-]{0,63}$")]
Rank = Annotated[int, Field(ge=1, le=4096)]
Alpha = Annotated[float, Field(gt=0, le=1e6)]
Dimension = Annotated[int, Field(ge=1, le=2**24)]
Count = Annotated[int, Field(ge=1, le=2**48)]
Metric = Annotated[float, Field(ge=-1e100, le=1e100)]  # so that no weighted mean of them overflows
Metrics = Annotated[dict[MetricName, Metric], Field(max_length=32)]
RankPattern = Annotated[dict[TensorName, Rank], Field(max_length=4096)]
AlphaPattern = Annotated[dict[TensorName, Alpha], Field(max_length=4096)]


def omitted_if_default(default: object) -> Callable[[object], bool]:
    """For `Field(exclude_if=...)` of a field that an earlier release does not know: at its default it is not sent, which
    keeps a strict reader of that release working."""
    return lambda value: value == default


class Message(BaseModel):
    """Base of every message: frozen, strict, closed, finite."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)
