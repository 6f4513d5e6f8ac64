"""The held-out split: by content, the same on every call."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexlora_client.errors import DataError
from flexlora_client.training.data.examples import Example, Instructed, Plain, Prompted
from flexlora_client.training.data.split import check_fraction
from flexlora_client.training.data.split import split as split_store
from flexlora_client.training.data.store import ExampleStore


def texts(count: int) -> list[Example]:
    return [Plain(f"text {n}") for n in range(count)]


def split(examples: list[Example], fraction: float, seed: int) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    store = ExampleStore(seed)
    for example in examples:
        store.add(example)
    train, heldout = split_store(store, fraction)
    return tuple(train), tuple(heldout)


def test_a_split_takes_about_its_fraction_and_loses_nothing() -> None:
    train, heldout = split(texts(2000), 0.2, seed=3)
    assert 320 < len(heldout) < 480
    assert sorted(map(str, train + heldout)) == sorted(map(str, texts(2000)))
    assert split(texts(2000), 0.2, seed=4)[1] != heldout
    assert split(texts(9), 0, seed=3)[1] == ()


@given(st.lists(st.text(), max_size=30), st.lists(st.text(), max_size=30), st.integers(0, 2**31 - 1))
def test_appended_rows_move_no_example(first: list[str], more: list[str], seed: int) -> None:
    anchor = [example for n in range(40) if (example := Plain(f"anchor {n}"))]  # so that some are left to train on
    before = split([*anchor, *map(Plain, first)], 0.5, seed)
    train, heldout = split([*anchor, *map(Plain, first), *map(Plain, more)], 0.5, seed)
    assert (train[: len(before[0])], heldout[: len(before[1])]) == before
    assert not set(train) & set(heldout)


@pytest.mark.parametrize("fraction", [-0.1, 1, float("nan")])
def test_fractions_out_of_range(fraction: float) -> None:
    with pytest.raises(DataError, match="give a number from 0 to below 1"):
        check_fraction(fraction)


def test_a_split_that_leaves_nothing_to_train_on() -> None:
    with pytest.raises(DataError, match="leaves none to train on"):
        split(texts(1), 0.999999, seed=0)


def test_no_side_has_moved_since_the_first_release() -> None:
    """Recorded from release 0.2.0: a participant's held-out examples must not become training examples by an upgrade."""
    examples = [*texts(6), *(Instructed("Add.", str(n) * (n % 2), str(n)) for n in range(6)), Prompted("a", "b")]
    _, heldout = split(examples, 0.4, seed=7)
    assert [examples.index(example) for example in heldout] == [1, 3, 4, 5, 10, 12]
