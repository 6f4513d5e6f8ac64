"""Virtual time: speeds and their spread, availability and dropout, drawn by name, round and attempt alone."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from flexlora_shared.messages.runs import TrainingSpec
from flexlora_shared.messages.tasks import Task
from flexlora_simulation.experiment import Resource, Timing
from flexlora_simulation.population.participants import Participant
from flexlora_simulation.population.partition import Part
from flexlora_simulation.population.virtual_time import VirtualTime, steps_of
from tests.support.kit import spec

SIZE = 1000  # bytes of a slice
MANY = 600


def participant(number: int = 0, speed: float = 1.0, examples: int = 40) -> Participant:
    return Participant(Part(f"participant-{number:05}", tuple(range(examples)), ()), Resource(rank=4, speed=speed))


def task(round: int = 1, attempt: int = 1, **training: Any) -> Task:
    """A task of 10 steps, where nothing else is said: what virtual time looks at."""
    given = {"batch_size": 4, **training}
    return Task.model_validate(
        {
            "run": "run",
            "round": round,
            "attempt": attempt,
            "rank": 4,
            "spec": spec(training=given),
            "rank_pattern": {},
            "adapter": {"href": "/x", "config_href": "/y", "sha256": "0" * 64, "size": SIZE},
            "deadline": "2020-01-01T00:00:00Z",
        }
    )


def seconds(timing: VirtualTime, who: Participant, given: Task) -> float:
    """From its assignment until its update has arrived."""
    return timing.plan(who, given).arrived


def test_a_round_takes_its_steps_at_the_participants_speed_and_its_transfers() -> None:
    usual = VirtualTime(Timing(step_seconds=3.0), 0)
    assert seconds(usual, participant(), task()) == pytest.approx(30)
    assert seconds(usual, participant(speed=0.5), task()) == pytest.approx(60)
    with_transfers = VirtualTime(Timing(step_seconds=3.0, bytes_per_second=100.0), 0)
    assert seconds(with_transfers, participant(speed=0.5), task()) == pytest.approx(60 + 2 * SIZE / 100)


@pytest.mark.parametrize(
    ("training", "steps"),
    [
        ({"batch_size": 8}, 5),
        ({"batch_size": 8, "epochs": 3}, 15),
        ({"batch_size": 7}, 6),
        ({"batch_size": 4, "gradient_accumulation_steps": 2, "epochs": 2}, 10),
        ({"batch_size": 8, "max_steps": 2}, 2),
        ({"batch_size": 8, "max_steps": 50}, 5),
    ],
)
def test_steps_are_those_of_the_training_loop(training: dict[str, Any], steps: int) -> None:
    assert steps_of(TrainingSpec.model_validate(training), 40) == steps


def test_spread_is_a_participants_own_and_jitter_a_rounds() -> None:
    def logarithms(timing: Timing, places: list[tuple[int, int]]) -> Any:
        drawn = VirtualTime(timing, 0)
        return np.log([seconds(drawn, participant(number), task(round)) / 10 for number, round in places])

    everybody, rounds = [(n, 1) for n in range(300)], [(0, n) for n in range(300)]
    for timing, varying, same in ((Timing(spread=0.5), everybody, rounds), (Timing(jitter=0.5), rounds, None)):
        found = logarithms(timing, varying)
        assert (found.mean(), found.std()) == (pytest.approx(0, abs=0.1), pytest.approx(0.5, rel=0.15))
        if same is not None:
            assert np.ptp(logarithms(timing, same)) < 1e-12
    both = logarithms(Timing(spread=0.3, jitter=0.4), everybody)
    assert both.std() == pytest.approx(0.5, rel=0.15)


@pytest.mark.parametrize("name", ["available", "dropout"])
def test_chances_are_those_given_and_independent(name: str) -> None:
    timing = VirtualTime(Timing(**{name: 0.3}), 0)
    ask = timing.is_available if name == "available" else timing.vanishes
    by_person = np.array([ask(participant(n), 1, 1) for n in range(MANY)])
    by_round = np.array([ask(participant(n), 2, 1) for n in range(MANY)])
    by_attempt = np.array([ask(participant(n), 1, 2) for n in range(MANY)])
    for drawn in (by_person, by_round, by_attempt):
        assert drawn.mean() == pytest.approx(0.3, abs=0.06)
    for other in (by_round, by_attempt):
        assert np.corrcoef(by_person, other)[0, 1] == pytest.approx(0, abs=0.12)
    for sure, answer in ((0.0, False), (1.0, True)):
        certain = VirtualTime(Timing(**{name: sure}), 0)
        ask = certain.is_available if name == "available" else certain.vanishes
        assert {ask(participant(n), 1, 1) for n in range(50)} == {answer}


def test_availability_and_dropout_are_drawn_apart() -> None:
    timing = VirtualTime(Timing(available=0.5, dropout=0.5), 0)
    there, gone = zip(
        *((timing.is_available(participant(n), 1, 1), timing.vanishes(participant(n), 1, 1)) for n in range(MANY)),
        strict=True,
    )
    assert np.corrcoef(there, gone)[0, 1] == pytest.approx(0, abs=0.12)


def test_a_draw_depends_on_seed_name_round_and_attempt_alone() -> None:
    timing, one = Timing(spread=0.5, jitter=0.5, available=0.5, dropout=0.5), participant(7)

    def drawn(seed: int, who: Participant = one, round: int = 3, attempt: int = 1) -> float:
        return seconds(VirtualTime(timing, seed), who, task(round, attempt))

    expected = drawn(0)
    ahead = VirtualTime(timing, 0)
    for number in range(5):  # whatever was asked before
        seconds(ahead, participant(number), task())
        ahead.vanishes(participant(number), 1, 1)
    assert seconds(ahead, one, task(3)) == expected
    assert drawn(0, replace(one, resource=Resource(rank=64))) == expected
    others = [drawn(1), drawn(0, participant(8)), drawn(0, round=4), drawn(0, attempt=2)]
    assert len({expected, *others}) == 5
