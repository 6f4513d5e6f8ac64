"""The weights of a round's updates, before any filter: by examples, bounded for each participant.

Update i of participant c(i) counts v_i = n_i / sqrt(1 + late_i), with n_i its examples, at most `max_examples` of them, or
n_i = 1 where all weigh alike. A participant's count is the sum V of its updates' counts. Without a cap it has the share
V / sum V. With the cap s, water-filling: its share is min(s, t V), with the one t for which the shares sum to 1; what the cap
takes from one goes to the others in proportion to their counts. A participant's updates divide its share by their counts.

The discount of late updates is FedAsync's polynomial one with a = 1/2 (Xie et al. 2019, arXiv 1903.03934).
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from flexlora_shared.messages.runs import RunSpec, Weighting

EQUAL_SHARES = 3.0  # that one participant may have at most
MOST_OF_THREE = 0.5
MOST_OF_MORE = 0.3  # so that the others outweigh it with a change of the median length: docs/decisions/0035


@dataclass(frozen=True)
class WeightRule:
    """A run's rule: `weighting`, `max_examples` and `max_share` of its definition."""

    weighting: Weighting = "examples"
    max_examples: int | None = None
    max_share: float | None = None

    @classmethod
    def of(cls, spec: RunSpec) -> "WeightRule":
        """The rule of a run; by examples where its definition names none, as earlier versions did."""
        return cls(spec.weighting or "examples", spec.max_examples, spec.max_share)

    def largest_share(self, participants: int) -> float:
        """The largest share of one of a round's participants; 1 where nothing is capped.

        Where the run names no share: three times the equal share, at most half of three and 0.3 of four or more; fewer than
        three are not capped. A cap below the equal share means equal shares.
        """
        if self.weighting != "capped":
            return 1.0
        if self.max_share is not None:
            return max(self.max_share, 1 / participants)
        if participants < 3:
            return 1.0
        return min(EQUAL_SHARES / participants, MOST_OF_THREE if participants == 3 else MOST_OF_MORE)

    def count(self, update: "Counted") -> float:
        """What an update counts before any cap of shares."""
        examples = 1 if self.weighting == "equal" else min(update.examples, self.max_examples or update.examples)
        return examples / math.sqrt(1 + update.staleness)


BY_EXAMPLES = WeightRule()


@dataclass(frozen=True)
class Counted:
    """What decides the weight of one update. client: whose it is; "" where nobody knows, then it is somebody's only one."""

    examples: int
    staleness: int = 0
    client: str = ""


def update_weights(updates: Sequence[Counted], rule: WeightRule = BY_EXAMPLES) -> list[float]:
    """The weight of each update, in order; they sum to 1, and do not depend on the order."""
    counts = [rule.count(update) for update in updates]
    owners = [update.client or f"\0{index}" for index, update in enumerate(updates)]
    groups = defaultdict[str, list[float]](list)
    for owner, count in zip(owners, counts, strict=True):
        groups[owner].append(count)
    sums = {owner: math.fsum(group) for owner, group in groups.items()}
    cap = rule.largest_share(len(sums))
    level, free = _level(list(sums.values()), math.fsum(counts), cap)
    return [
        count * free / level if sums[owner] * free <= cap * level else cap * (count / sums[owner])
        for owner, count in zip(owners, counts, strict=True)
    ]


def _level(sums: Sequence[float], total: float, cap: float) -> tuple[float, float]:
    """The sum of the counts that the cap does not bind, and the share left for them: 1 - cap for each that it binds.

    The largest counts are bound first, until the largest of the others is not: at most all but one.
    """
    ordered, free = sorted(sums, reverse=True), 1.0
    for bound, largest in enumerate(ordered):
        if bound:
            total, free = math.fsum(ordered[bound:]), max(0.0, 1 - bound * cap)
        if largest * free <= cap * total:
            return total, free
    return total, free
