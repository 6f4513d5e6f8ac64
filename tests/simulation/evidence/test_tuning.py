"""The choice of learning rates."""

from collections.abc import Sequence

import pytest

from flexlora_simulation.evidence.tuning import tuned


@pytest.mark.parametrize(("peak", "chosen_rate", "tried"), [(0, 1.0, 5), (3, 8.0, 3), (5, 32.0, 4)])
def test_rates_are_tried_until_the_best_lies_between_two_others(peak: int, chosen_rate: float, tried: int) -> None:
    asked: list[float] = []

    def measure(pairs: Sequence[tuple[str, float]]) -> list[float]:
        asked.extend(rate for _, rate in pairs)
        return [-abs(rate - 2.0**peak) for _, rate in pairs]

    assert tuned({"flexlora": [2.0**n for n in range(6)]}, measure) == {"flexlora": chosen_rate}
    assert len(asked) == len(set(asked)) == tried


def test_each_rule_has_rates_of_its_own_and_a_single_one_is_not_measured() -> None:
    asked: list[tuple[str, float]] = []

    def measure(pairs: Sequence[tuple[str, float]]) -> list[float]:
        asked.extend(pairs)
        return [rate for _, rate in pairs]

    assert tuned({"fedit": [0.01, 0.02], "fedavg": [1.0, 2.0, 4.0], "slora": [0.1]}, measure) == {
        "fedit": 0.02,
        "fedavg": 4.0,
        "slora": 0.1,
    }
    assert {rule for rule, _ in asked} == {"fedit", "fedavg"}
