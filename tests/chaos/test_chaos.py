"""A short run of the simulation; scripts/chaos plays more."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.history import History, Interruption, Plan, Step
from tests.chaos.plants import PLANTS
from tests.chaos.simulate import Violated, play, play_many
from tests.chaos.site import Site
from tests.chaos.sites import new_site

SOON = {"late-below-quorum": 10}  # a seed whose histories meet it early; others may take minutes
UNDISTURBED = History(Plan(), ())


@pytest.fixture(scope="module")
def sqlite() -> Iterator[Site]:
    """A place to play on SQLite."""
    with new_site(None) as here:
        yield here


def test_an_undisturbed_run_completes_and_counts_everything(sqlite: Site) -> None:
    world = play(sqlite, UNDISTURBED)
    assert world.state() == "COMPLETED"
    assert len(world.oracle.receipts) == len(world.oracle.counted_in) == 4


def test_the_same_history_leaves_the_same_trace(sqlite: Site) -> None:
    inside = Interruption(7, Step("cut-power"))
    steps = [Step("go", who, 3) for who in range(3)] * 4 + [Step("tick"), Step("go", 0, 2, "", (inside,)), Step("work")]
    history = History(Plan(agents=3, late_updates="next-round"), tuple(steps))
    first, again = play(sqlite, history), play(sqlite, history)
    assert first.trace == again.trace
    assert any("the power is cut" in line for line in first.trace)


def test_histories_on_sqlite(sqlite: Site) -> None:
    tally = play_many(sqlite, seed=1, steps=16, count=4)
    assert tally.published > tally.histories
    assert tally.receipts > tally.histories


def test_histories_on_postgresql(postgres_socket: Path) -> None:
    with new_site(postgres_socket) as here:
        assert play_many(here, seed=2, steps=12, count=2).receipts > 2


@pytest.mark.slow
@pytest.mark.parametrize("plant", sorted(PLANTS))
def test_a_planted_defect_is_found(sqlite: Site, plant: str) -> None:
    with pytest.raises(Violated, match="VIOLATION"):
        play_many(sqlite, seed=SOON.get(plant, 1), steps=40, count=960, plant=PLANTS[plant], shrink=False)
