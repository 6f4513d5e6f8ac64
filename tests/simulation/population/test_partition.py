"""Every example is dealt once, in the shares wanted, the same on every run; unseen participants are whole groups."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexlora_client.training.data.examples import Labelled
from flexlora_shared.messages.clients import Enrollment
from flexlora_simulation.errors import ExperimentError
from flexlora_simulation.experiment import Partition
from flexlora_simulation.population import partition
from flexlora_simulation.population.partition import Part, client_names, deal
from flexlora_simulation.workloads.contract import Item


def items(count: int, labels: int = 3, groups: int = 5) -> list[Item]:
    return [Item(Labelled(str(n), n % labels), str(n % labels), f"group-{n % groups}") for n in range(count)]


def dealt(count: int = 60, seed: int = 0, **options: Any) -> tuple[Part, ...]:
    return deal(items(count), Partition(**options), seed)


@settings(max_examples=25)
@given(
    by=st.sampled_from(["uniform", "label", "group", "size"]),
    participants=st.integers(2, 12),
    smallest=st.integers(1, 3),
    heldout=st.sampled_from([0.0, 0.3, 0.9]),
    unseen=st.booleans(),
    seed=st.integers(0, 5),
)
def test_every_example_has_one_owner(
    by: Any, participants: int, smallest: int, heldout: float, unseen: bool, seed: int
) -> None:
    alone = by != "group" or participants <= 5  # else groups have several participants
    options = Partition(
        by=by,
        participants=participants,
        alpha=2.0,
        smallest=smallest,
        heldout=heldout,
        unseen=1 if unseen and alone else 0,
    )
    parts = deal(items(60), options, seed)
    assert parts == deal(items(60), options, seed)
    assert len({part.name for part in parts}) == participants
    assert sorted(index for part in parts for index in (*part.train, *part.heldout)) == list(range(60))
    assert all(part.train and len(part.train) + len(part.heldout) >= smallest for part in parts)
    assert [part.seen for part in parts] == [True] * (participants - options.unseen) + [False] * options.unseen
    for part in parts:
        whole = len(part.train) + len(part.heldout)
        assert len(part.heldout) == (min(round(heldout * whole), whole - 1) if part.seen else 0)
    if by != "group" or heldout:  # else whole groups are dealt, and two seeds may agree
        assert parts != deal(items(60), options, seed + 100)


def test_a_labels_shares_are_of_the_dirichlet_distribution() -> None:
    """Mean and variance of a share over many labels, against the distribution's own and numpy's draws of it."""
    count, labels, alpha = 4, 200, 0.5
    many = [Item(Labelled("", n % labels), f"{n % labels:03}") for n in range(labels * 50)]
    parts = deal(many, Partition(by="label", participants=count, alpha=alpha), 0)
    shares = np.zeros((count, labels))
    for number, part in enumerate(parts):
        for label, own in Counter(many[index].label for index in part.train).items():
            shares[number, int(label or 0)] = own / 50
    drawn = np.random.default_rng(1).dirichlet(np.full(count, alpha), labels)
    for found in (shares, drawn.T):
        assert found.mean() == pytest.approx(1 / count)
        assert found.var() == pytest.approx((1 / 4 * 3 / 4) / (count * alpha + 1), rel=0.15)


def test_sizes_are_of_the_dirichlet_distribution_beyond_the_smallest() -> None:
    sizes = np.array([len(part.train) for part in dealt(5000, by="size", participants=400, alpha=0.5, smallest=2)])
    assert (sizes.min(), sizes.sum()) == (2, 5000)
    shares = (sizes - 2) / (5000 - 800)
    drawn = np.random.default_rng(1).dirichlet(np.full(400, 0.5))
    assert (shares.std(), drawn.std()) == pytest.approx([(1 / 400) / 0.5**0.5] * 2, rel=0.15)


def test_equal_parts() -> None:
    assert Counter(len(part.train) for part in dealt(62, by="uniform", participants=6)) == {10: 4, 11: 2}


def test_by_group_a_participant_has_whole_groups() -> None:
    alone = dealt(by="group", unseen=2)
    assert sorted(part.name for part in alone) == [f"group-{n}" for n in range(5)]
    assert [{index % 5 for index in part.train} for part in alone] == [{int(part.name[-1])} for part in alone]
    assert sorted(len({n % 5 for n in part.train}) for part in dealt(by="group", participants=2)) == [2, 3]


def test_where_groups_are_few_several_participants_share_one_and_are_unseen_together() -> None:
    parts = dealt(by="group", participants=10, unseen=4)
    assert {part.name for part in parts} == {f"group-{n} {half}" for n in range(5) for half in (1, 2)}
    assert all(len(part.train) == 6 for part in parts)
    seen = {part.name.split()[0] for part in parts if part.seen}
    assert len(seen) == 3
    assert seen.isdisjoint(part.name.split()[0] for part in parts if not part.seen)
    named = dealt(by="group", participants=10, unseen_groups=("group-4",))
    assert {part.name for part in named if not part.seen} == {"group-4 1", "group-4 2"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"by": "uniform"}, "partition.participants: say how many"),
        ({"by": "uniform", "participants": 3, "unseen": 3}, "nobody is left to train"),
        ({"by": "uniform", "participants": 70}, "participant-00060 has 0 examples, fewer than 1"),
        ({"by": "label", "participants": 30, "smallest": 5}, "3 draws left a participant with fewer than 5"),
        ({"by": "size", "participants": 30, "smallest": 5}, "60 examples are too few for 30 x 5"),
        ({"by": "group", "participants": 10, "unseen": 3}, "3 participants are not whole groups"),
        ({"by": "group", "unseen_groups": ("moon",)}, "'moon' is no group .* there are group-0, group-1"),
        (
            {"by": "group", "participants": 2, "unseen_groups": ("group-1",)},
            "is no group that participants have for them",
        ),
        ({"by": "group", "unseen_groups": tuple(f"group-{n}" for n in range(5))}, "nobody is left to train"),
    ],
)
def test_what_cannot_be_dealt_is_told(options: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "ATTEMPTS", 3)
    with pytest.raises(ExperimentError, match=sentence):
        dealt(**options)


@pytest.mark.parametrize("by", ["label", "group"])
def test_items_without_labels_or_groups_cannot_be_dealt_by_them(by: Any) -> None:
    with pytest.raises(ExperimentError, match=f"the workload has no {by}s"):
        deal([Item(Labelled("", 0))], Partition(by=by, participants=1), 0)


def test_names_of_groups_become_names_of_participants() -> None:
    given = ["task 1", "task/1", "task:1", "_x", "é" * 80, "é" * 81]
    found = client_names(given)
    assert found[:2] == ["task 1", "task-1"]
    assert len(set(found)) == len(given)
    for name in found:
        Enrollment(token="", name=name)
