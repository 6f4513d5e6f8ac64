"""From probes to estimates, and from estimates to the rank that fits."""

from typing import Any

import pytest

from flexlora_client.training.fitting.choice import Bounds, Costs, Size, choose
from flexlora_client.training.fitting.estimate import BYTES_PER_PARAMETER, Estimate, Measured
from flexlora_client.training.fitting.probes import Answering, Probe
from flexlora_client.training.fitting.workload import Workload

WORK = Workload(
    steps=((10, 10, 20, 20),) * 5, batch_size=4, heldout=(10, 10, 30), answers=(), bytes_per_number=0
)  # nothing is transferred
SIZES = {4: 100, 8: 200, 16: 400}


def truth(parameters: int, tokens: int) -> Probe:
    """A machine that is linear in both."""
    return Probe(
        tokens,
        backward=0.1 + 0.001 * parameters + 0.01 * tokens + 1e-5 * parameters * tokens,
        forward=0.01 * tokens,
        update=0.002 * parameters,
        peak=1000 + 16 * parameters + 50 * tokens + parameters * tokens // 100,
    )


def estimate(*parameters: int) -> Estimate:
    return Estimate([Measured(size, [truth(size, 10), truth(size, 60)]) for size in parameters])


def test_an_estimate_goes_through_what_was_measured_and_beyond() -> None:
    measured = estimate(100, 400)
    for size, tokens in [(100, 10), (400, 60), (200, 30), (300, 100), (600, 80)]:
        expected = truth(size, tokens)
        assert measured.peak(size, tokens) == pytest.approx(expected.peak, rel=1e-3)
        assert measured.backward(size, tokens) == pytest.approx(expected.backward)
        assert measured.forward(size, tokens) == pytest.approx(expected.forward)
        assert measured.update(size) == pytest.approx(expected.update)


def test_with_one_rank_measured_memory_grows_by_what_each_number_takes() -> None:
    measured = estimate(100)
    assert measured.peak(300, 10) == truth(100, 10).peak + 200 * BYTES_PER_PARAMETER
    assert measured.backward(300, 10) == truth(100, 10).backward


def test_noise_never_makes_more_work_cheaper() -> None:
    noisy = Estimate([Measured(100, [Probe(10, 2.0, 0.0, 0.0, 900), Probe(60, 1.9, 0.0, 0.0, 800)])])
    assert noisy.backward(100, 200) == 2.0
    assert noisy.peak(100, 200) == 900


def chosen(memory: float, seconds: float, costs: Costs | None = None, sizes: Any = None) -> Any:
    return choose(SIZES, sizes or WORK.micro_batches, costs or Costs({False: estimate(100, 400)}, [(100, 0.0)]), WORK,
                  Bounds(memory, seconds))  # fmt: skip


def test_the_largest_rank_that_fits_is_chosen() -> None:
    choice = chosen(1e9, 1e9)
    assert (choice.chosen.rank, [option.verdict for option in choice.options]) == (16, ["fits"] * 3)
    assert choice.chosen.micro_batch == 4  # the fastest: a call costs 0.1 s


def test_predicted_seconds_are_those_of_every_micro_batch_update_and_evaluation() -> None:
    option = chosen(1e9, 1e9, sizes=[2]).chosen
    backward = sum(truth(400, tokens).backward for tokens in (20, 40)) * 5
    held = 2 * (truth(400, 20).forward + truth(400, 30).forward)
    assert option.seconds == pytest.approx(backward + 5 * truth(400, 0).update + held)
    assert option.peak_bytes == pytest.approx(truth(400, 40).peak)


def test_less_memory_takes_smaller_micro_batches_then_lower_ranks() -> None:
    choice = chosen(truth(400, 40).peak + 1, 1e9)
    assert (choice.chosen.rank, choice.chosen.micro_batch) == (16, 2)
    choice = chosen(truth(200, 20).peak + 1, 1e9)
    assert (choice.chosen.rank, choice.chosen.micro_batch) == (8, 1)
    assert [option.verdict for option in choice.options] == ["too large", "fits", "fits"]


def test_a_near_deadline_takes_a_lower_rank() -> None:
    fast = chosen(1e9, 1e9).options
    choice = chosen(1e9, (fast[1].seconds + fast[0].seconds) / 2)
    assert [option.verdict for option in choice.options] == ["too slow", "fits", "fits"]
    assert "too slow" in choice.table().splitlines()[1]
    assert "chosen" in choice.table().splitlines()[2]
    assert [row["chosen"] for row in choice.rows()] == [False, True, False]


def test_checkpointing_is_taken_where_memory_asks_for_it() -> None:
    sparing = Estimate([Measured(size, [_sparing(size, 10), _sparing(size, 60)]) for size in (100, 400)])
    costs = Costs({False: estimate(100, 400), True: sparing}, [(100, 0.0)])
    assert not chosen(1e9, 1e9, costs).chosen.gradient_checkpointing
    choice = chosen(truth(400, 20).peak - 1, 1e9, costs)
    assert (choice.chosen.rank, choice.chosen.gradient_checkpointing) == (16, True)


def _sparing(parameters: int, tokens: int) -> Probe:
    full = truth(parameters, tokens)
    return Probe(tokens, 1.3 * full.backward, full.forward, full.update, 1000 + 16 * parameters + 5 * tokens)


def test_where_nothing_fits_nothing_is_chosen() -> None:
    assert chosen(10.0, 1e9).chosen is None
    assert chosen(1e9, 0.01).chosen is None


def test_answers_take_the_tokens_of_the_longest_of_each_batch_at_each_rank() -> None:
    def answering(parameters: int) -> list[Answering]:
        return [Answering(n, first=0.1 * n * parameters, token=0.01 * parameters) for n in (1, 3)]

    probes = {size: [truth(size, 10), truth(size, 60)] for size in (100, 400)}
    answered = Estimate([Measured(size, probes[size], answering(size)) for size in probes])
    work = Workload(WORK.steps, 4, WORK.heldout, (5, 7, 11), 0)
    with_answers = Costs({False: answered}, [(100, 0.5)]).option(Size(8, 8, 200, 200), 2, False, work).seconds
    without = Costs({False: answered}, [(100, 0.0)]).option(Size(8, 8, 200, 200), 2, False, WORK).seconds
    first, token = 0.1 * (2 + 1) * 200, 0.01 * 200 * (6 + 10)
    assert with_answers - without == pytest.approx(first + token + 4 * 0.5)


def test_what_memory_leaves_is_held_after_the_rank_is_chosen() -> None:
    """A frozen number takes 8 bytes, a trained one 16 and activations: the largest rank first, then the largest that is held."""
    costs = Costs({False: estimate(100, 400)}, [(100, 0.0)])

    def held(memory: float, seconds: float = 1e9) -> tuple[int, int]:
        found = choose({4: 100, 8: 200}, [4], costs, WORK, Bounds(memory, seconds), {4: 100, 8: 200, 16: 400, 32: 800})
        assert found.chosen is not None
        assert found.options[[o.rank for o in found.options].index(found.chosen.rank)] is found.chosen
        return found.chosen.rank, found.chosen.hold_rank

    largest = truth(200, 80).peak + 1
    assert held(largest) == (8, 8)
    assert held(largest + 8 * 200) == (8, 16)
    assert held(largest + 8 * 600) == (8, 32)
    assert held(largest - 2) == (4, 8), (
        "8 bytes for each of 100 numbers held are less than 16 for those that are trained"
    )
    slow = costs.option(Size(8, 16, 200, 400), 4, False, WORK)
    assert held(1e9, slow.seconds) == (8, 16)
    assert held(1e9, slow.seconds - 0.01) == (8, 8)


def test_both_directions_of_a_held_slice_are_transferred_as_they_are() -> None:
    work = Workload(WORK.steps, 4, WORK.heldout, (), 4)
    costs = Costs({False: estimate(100, 400)}, [(100, 0.0)])
    assert costs.option(Size(4, 16, 100, 400), 4, False, work).transfer_seconds == pytest.approx(4 * 500 / 2.5e6)
