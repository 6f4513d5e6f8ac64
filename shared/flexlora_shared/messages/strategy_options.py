"""Options of aggregation strategies: numbers and words that a run's strategy is used with."""

from typing import Annotated

from pydantic import Field

from flexlora_shared.messages.base import Message, omitted_if_default


class StrategyOptions(Message):
    """Options of the run's strategy; each strategy takes some of them, and a run that gives it another one is refused."""

    leak: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="flexlora-residual: share of what was served to nobody that is let go in each round; 1 is flexlora",
            exclude_if=omitted_if_default(0.0),
        ),
    ] = 0.0
    shrink: Annotated[
        float,
        Field(
            ge=0,
            le=1e6,
            description="flexlora-residual: how much directions that few hold shrink where participants disagree; 0: not at all",
            exclude_if=omitted_if_default(0.0),
        ),
    ] = 0.0

    @property
    def given(self) -> tuple[str, ...]:
        """The names of the options that differ from their defaults."""
        return tuple(name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default)
