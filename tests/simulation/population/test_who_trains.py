"""One participant alone, or one with the examples of all."""

import pytest

from flexlora_simulation.errors import ExperimentError
from flexlora_simulation.experiment import Experiment, Resource, parse
from flexlora_simulation.population.partition import Part
from flexlora_simulation.population.who_trains import POOLED, who_trains

SMALL, LARGE = Resource(rank=2), Resource(rank=8)
DEALT = [
    (Part("ada", (3, 4), (5,)), SMALL),
    (Part("bob", (0, 1), (2,)), LARGE),
    (Part("zoe", (6, 7), (), seen=False), LARGE),
]


def asking(**fields: object) -> Experiment:
    return parse({"name": "some", "workload": {"name": "banking77"}, "run": {"rounds": 1}, **fields})


def test_everybody_trains_unless_something_else_is_asked_for() -> None:
    assert who_trains(DEALT, asking()) == DEALT


def test_one_alone_keeps_its_examples_and_those_that_nobody_trains_on() -> None:
    assert who_trains(DEALT, asking(only="ada")) == [DEALT[0], (DEALT[2][0], SMALL)]


def test_pooled_examples_are_all_but_the_held_out_and_the_unseen_ones() -> None:
    assert who_trains(DEALT, asking(pooled=True)) == [
        (Part(POOLED, (0, 1, 3, 4), ()), LARGE),
        (Part("ada", (), (5,), seen=False), SMALL),
        (Part("bob", (), (2,), seen=False), LARGE),
        DEALT[2],
    ]


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"only": "zoe"}, "no participant that trains is named 'zoe'"), ({"only": "ada", "pooled": True}, "leave one")],
)
def test_what_nobody_can_be_asked_for(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ExperimentError, match=said):
        who_trains(DEALT, asking(**fields))
