"""The robust filters of a run's definition: what is done to updates that may be faulty or hostile, in the order given."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from flexlora_shared.messages.base import Line, Message, MetricName, omitted_if_default


class NormClip(Message):
    """Shorten a change that is longer than a bound: a fixed one, or a multiple of the median change.

    Give exactly one of `bound` and `median_factor`; `history` and `by_weight` belong to `median_factor`.
    """

    kind: Annotated[Literal["norm-clip"], Field(description="Names the filter")] = "norm-clip"
    bound: Annotated[
        Annotated[float, Field(gt=0, le=1e15)] | None,
        Field(description="Longest change: Frobenius norm over all modules"),
    ] = None
    median_factor: Annotated[
        Annotated[float, Field(gt=0, le=1e6)] | None,
        Field(description="Longest change as a multiple of the median change"),
    ] = None
    history: Annotated[
        int, Field(ge=0, le=1000, description="Past rounds whose median counts beside this round's changes")
    ] = 0
    by_weight: Annotated[
        bool,
        Field(
            description="Whether a change is clipped earlier the more it weighs, so that the others outweigh it; of four or more",
            exclude_if=omitted_if_default(False),
        ),
    ] = False

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if (self.bound is None) == (self.median_factor is None):
            raise ValueError("give exactly one of bound and median_factor")
        if self.bound is not None and self.history:
            raise ValueError("history belongs to median_factor: a fixed bound has none")
        if self.bound is not None and self.by_weight:
            raise ValueError("by_weight belongs to median_factor: a fixed bound is the same for all")
        return self


class MultiKrum(Message):
    """Keep the updates that lie closest to their neighbours, leave out as many as may be byzantine."""

    kind: Annotated[Literal["multi-krum"], Field(description="Names the filter")] = "multi-krum"
    byzantine_share: Annotated[
        float, Field(gt=0, lt=0.5, description="Share of a round's updates that may be byzantine")
    ]


class GeometricMedian(Message):
    """Weight the updates so that their mean is their geometric median."""

    kind: Annotated[Literal["geometric-median"], Field(description="Names the filter")] = "geometric-median"


class Cosine(Message):
    """Leave out a change that points away from the last round's."""

    kind: Annotated[Literal["cosine"], Field(description="Names the filter")] = "cosine"
    minimum: Annotated[
        float, Field(ge=-1, le=1, description="Smallest cosine with the last change of the global update")
    ]


KIND_PATTERN = r"^[a-z][a-z0-9-]{0,63}$"


class CustomFilter(Message):
    """A filter that a package of the coordinator's brings (entry point `flexlora.filters`), with its own options."""

    kind: Annotated[str, Field(pattern=KIND_PATTERN, description="Name under which the package offers the filter")]
    options: Annotated[
        dict[MetricName, bool | int | float | Line],
        Field(max_length=32, description="Options of the filter, which it checks itself"),
    ] = {}


def _tag(defined: Any) -> str:
    """The kind of a built-in filter, else `custom`."""
    kind = defined.get("kind") if isinstance(defined, dict) else getattr(defined, "kind", None)
    return kind if isinstance(kind, str) and kind in BUILT_IN else "custom"


BUILT_IN = ("norm-clip", "multi-krum", "geometric-median", "cosine")
Filter = Annotated[
    Annotated[NormClip, Tag("norm-clip")]
    | Annotated[MultiKrum, Tag("multi-krum")]
    | Annotated[GeometricMedian, Tag("geometric-median")]
    | Annotated[Cosine, Tag("cosine")]
    | Annotated[CustomFilter, Tag("custom")],
    Discriminator(_tag),
]
