"""Options of aggregation strategies: numbers and words that a run's strategy is used with."""

from typing import Annotated, Literal

from pydantic import Field

from flexlora_shared.messages.base import Message, omitted_if_default

Weighting = Literal["examples-and-norm", "norm"]


class StrategyOptions(Message):
    """Options of the run's strategy; each strategy takes some of them, and a run that gives it another one is refused."""

    leak: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="flexlora-residual: share of what nobody trained that is let go in each round; 1 is flexlora",
            exclude_if=omitted_if_default(0.0),
        ),
    ] = 0.0
    shrink: Annotated[
        float,
        Field(
            ge=0,
            le=1e6,
            description="flexlora-residual: how much directions that few train shrink where participants disagree; 0: not at all",
            exclude_if=omitted_if_default(0.0),
        ),
    ] = 0.0
    energy: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="flexlora, flexlora-residual: share of each module's energy that the directions served must reach",
            exclude_if=omitted_if_default(1.0),
        ),
    ] = 1.0
    weighting: Annotated[
        Weighting,
        Field(
            description="hetlora: an update weighs by its examples times its norm, or by its norm alone, as in the paper",
            exclude_if=omitted_if_default("examples-and-norm"),
        ),
    ] = "examples-and-norm"

    @property
    def given(self) -> tuple[str, ...]:
        """The names of the options that differ from their defaults."""
        return tuple(name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default)

    @property
    def text(self) -> str:
        """The same with their values, for people: "leak 0.1, energy 0.95"."""
        return ", ".join(f"{name} {getattr(self, name)}" for name in self.given)
