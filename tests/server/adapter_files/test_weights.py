"""The weights of a round: today's rule to the last bit, the cap against a float64 reference, and its properties."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexlora_server.adapter_files.weights import Counted, WeightRule, update_weights

CAPPED = WeightRule("capped")
CLIENTS = st.sampled_from(["", "a", "b", "c", "d", "e"])
UPDATES = st.lists(st.builds(Counted, st.integers(1, 2**48), st.integers(0, 3), CLIENTS), min_size=1, max_size=12)
RULES = st.builds(
    WeightRule,
    st.sampled_from(["examples", "equal", "capped"]),
    st.none() | st.integers(1, 2**48),
    st.none() | st.floats(0.01, 1),
)


def by_bisection(counts: list[float], cap: float) -> np.ndarray:
    """min(cap, t v) with the t for which the shares sum to 1, by halving."""
    v = np.array(counts, dtype=np.float64)
    if cap * len(v) <= 1:
        return np.full(len(v), 1 / len(v))
    low, high = 0.0, float(1 / v.min())
    for _ in range(2000):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(cap, middle * v).sum() < 1 else (low, middle)
    return np.minimum(cap, high * v)


@pytest.mark.parametrize(
    ("examples", "shares"),
    [
        ([10**12, 100, 100, 100], [0.3, 0.7 / 3, 0.7 / 3, 0.7 / 3]),
        ([10**12, 10**12, 10**12, 100], [0.3, 0.3, 0.3, 0.1]),
        ([10**12, 1, 1], [0.5, 0.25, 0.25]),
        ([300, 100], [0.75, 0.25]),
        ([10**12, *[100] * 19], [0.15, *[0.85 / 19] * 19]),
        ([100, 200, 300, 200], [0.125, 0.25, 0.3, 0.25]),
    ],
)
def test_the_cap(examples: list[int], shares: list[float]) -> None:
    weights = update_weights([Counted(n, 0, str(i)) for i, n in enumerate(examples)], CAPPED)
    if examples == [100, 200, 300, 200]:  # what the largest loses goes to the others in proportion
        shares = [0.7 * n / 500 if n < 300 else 0.3 for n in examples]
    assert weights == pytest.approx(shares, rel=1e-12)


def test_late_updates_of_one_participant_share_its_cap() -> None:
    given = [Counted(10**12, 0, "a"), Counted(10**12, 3, "a"), *(Counted(100, 0, x) for x in "bcd")]
    assert update_weights(given, CAPPED) == pytest.approx([0.2, 0.1, *[0.7 / 3] * 3], rel=1e-12)


def test_max_examples_and_equal_weights() -> None:
    given = [Counted(10**12), Counted(50), Counted(50, 3)]
    assert update_weights(given, WeightRule("examples", 100)) == [100 / 175, 50 / 175, 25 / 175]
    assert update_weights(given, WeightRule("equal")) == [0.4, 0.4, 0.2]


def test_a_cap_below_the_equal_share_makes_shares_equal() -> None:
    given = [Counted(n, 0, str(n)) for n in (1, 10, 100, 1000)]
    assert update_weights(given, WeightRule("capped", None, 0.1)) == pytest.approx([0.25] * 4, rel=1e-12)


@given(UPDATES)
def test_by_examples_it_is_what_it_always_was(updates: list[Counted]) -> None:
    counted = [update.examples / math.sqrt(1 + update.staleness) for update in updates]
    assert update_weights(updates) == [count / math.fsum(counted) for count in counted]


@given(UPDATES, RULES, st.randoms())
def test_weights_sum_to_one_stay_below_the_cap_and_know_no_order(updates, rule, random) -> None:  # type: ignore[no-untyped-def]
    weights = update_weights(updates, rule)
    assert math.fsum(weights) == pytest.approx(1, abs=1e-12)
    assert min(weights) >= 0
    order = random.sample(range(len(updates)), len(updates))
    assert update_weights([updates[i] for i in order], rule) == [weights[i] for i in order]
    shares = dict[str, float]()
    for index, (update, weight) in enumerate(zip(updates, weights, strict=True)):
        owner = update.client or str(index)
        shares[owner] = shares.get(owner, 0) + weight
    cap = rule.largest_share(len(shares))
    assert max(shares.values()) <= cap * (1 + 1e-12)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=12), st.floats(0.05, 1))
def test_the_cap_is_water_filling(examples: list[int], share: float) -> None:
    rule = WeightRule("capped", None, share)
    weights = update_weights([Counted(n, 0, str(i)) for i, n in enumerate(examples)], rule)
    wanted = by_bisection([float(n) for n in examples], rule.largest_share(len(examples)))
    assert weights == pytest.approx(list(wanted), rel=1e-9)
    for (n, a), (m, b) in pairwise(sorted(zip(examples, weights, strict=True))):
        assert a <= b or n == m
