"""The weights of a round's updates, before any filter."""

import math
from collections.abc import Sequence


def update_weights(counts: Sequence[tuple[int, int]]) -> list[float]:
    """From (examples, rounds late) of each update its weight: in proportion to `n_i / sqrt(1 + staleness)`, summing to 1.

    The discount is FedAsync's polynomial one with a = 1/2 (Xie et al. 2019, arXiv 1903.03934).
    """
    counted = [examples / math.sqrt(1 + staleness) for examples, staleness in counts]
    total = math.fsum(counted)
    return [count / total for count in counted]
