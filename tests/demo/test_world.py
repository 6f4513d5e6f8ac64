"""The world: reproducible, split in two without overlap, and a narrative that never asks for a fact."""

import random

import pytest

from demo.tasks import FORMAT
from demo.world import CLAUSES, HELDOUT, KINDS, PEOPLE, SAYINGS, SENTENCES, Person, make_world, sentence, story

BEFORE, AFTER = (mark.strip() for mark in FORMAT.split("{clause}"))  # "Question: Can you say", "?\nAnswer:"


def stories(seed: int, count: int) -> list[str]:
    world, rng = make_world(), random.Random(seed)
    return [story(world, rng) for _ in range(count)]


def test_same_seed_gives_the_same_world_and_text() -> None:
    assert make_world(3) == make_world(3)
    assert make_world(3) != make_world(4)
    assert stories(1, 50) == stories(1, 50)
    assert stories(1, 50) != stories(2, 50)


def test_people_are_unique_and_heldout_ones_apart() -> None:
    world = make_world()
    known, heldout = {person.name for person in world.known}, {person.name for person in world.heldout}
    assert len(known) == PEOPLE - HELDOUT
    assert len(heldout) == HELDOUT
    assert not known & heldout


def test_the_narrative_speaks_of_heldout_people_too() -> None:
    text = " ".join(stories(0, 2000))
    assert all(person.name in text for person in make_world().heldout)


@pytest.mark.parametrize("kind", KINDS)
def test_every_wording_names_the_person_before_the_fact(kind: str) -> None:
    person = Person("Alba", "Oakmoor", "baker", "plum jam", "grey cat")
    rng = random.Random(0)
    made = {sentence(person, kind, rng) for _ in range(1000)}
    assert len(made) == len(SENTENCES[kind]) + len(CLAUSES[kind]) * len(SAYINGS)
    for text in made:
        assert text.index("Alba") < text.index(person.phrase(kind))


def test_narrative_never_contains_the_task_format_or_a_question_about_a_person() -> None:
    names = {person.name for person in make_world().people}
    for text in stories(5, 3000):
        for mark in (BEFORE, "Question:", AFTER, "Answer:"):
            assert mark not in text
        asked = [line.rpartition(".")[2] for line in text.split("?")[:-1]]
        assert not any(names & set(question.split()) for question in asked)
