"""Who is killed when: drawn from a seed before the run begins."""

import random
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Kind = Literal["coordinator", "worker", "agent"]
Moment = Literal["any", "part", "aggregating", "published"]
KINDS: tuple[Kind, ...] = ("coordinator", "worker", "agent")
LATER: tuple[Moment, ...] = ("part", "aggregating", "published")  # in the order in which a round reaches them
LONGEST: dict[Moment, float] = {"any": 1.0, "part": 0.03, "aggregating": 0.1, "published": 0.05}  # seconds of delay
COLD = 0.05  # share of restarts by the console script itself


@dataclass(frozen=True)
class Stroke:
    """One kill: `delay` seconds after the moment has come."""

    kind: Kind
    agent: str  # which one, where an agent is killed
    moment: Moment
    delay: float
    cold: bool


@dataclass(frozen=True)
class Plan:
    """A run's kills in all, its rounds, and the seed of everything drawn."""

    kills: int
    rounds: int
    seed: int

    def strokes(self, agents: list[str]) -> list[list[Stroke]]:
        """The kills of each round, from 1, in their order."""
        generator = random.Random(self.seed)
        bounds = [self.kills * number // self.rounds for number in range(self.rounds + 1)]
        return [
            _round(generator, after - before, agents, last=number == self.rounds)
            for number, (before, after) in enumerate(pairwise(bounds), 1)
        ]


def _round(generator: random.Random, count: int, agents: list[str], *, last: bool) -> list[Stroke]:
    """Some kills before the round's last update is made, the others at moments after that; none after the last round."""
    later = LATER[:-1] if last else LATER
    early = generator.randint(0, count)
    drawn = (generator.choice(later) for _ in range(count - early))
    moments: list[Moment] = ["any" for _ in range(early)]
    moments += sorted(drawn, key=LATER.index)
    return [_stroke(generator, moment, agents) for moment in moments]


def _stroke(generator: random.Random, moment: Moment, agents: list[str]) -> Stroke:
    # an aggregation dies with its worker only
    kind = generator.choice(KINDS if moment != "aggregating" else ("worker", *KINDS))
    agent = generator.choice(agents)
    return Stroke(kind, agent, moment, generator.uniform(0, LONGEST[moment]), generator.random() < COLD)
