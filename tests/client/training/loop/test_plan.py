"""Which examples make each optimizer step."""

from hypothesis import given
from hypothesis import strategies as st

from flexlora_client.training.loop.plan import plan_steps
from flexlora_shared.messages.runs import TrainingSpec


@given(st.lists(st.integers(1, 500), min_size=1, max_size=120), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3))
def test_every_epoch_takes_every_example_once(lengths: list[int], size: int, accumulate: int, epochs: int) -> None:
    training = TrainingSpec(batch_size=size, gradient_accumulation_steps=accumulate, epochs=epochs)
    steps = plan_steps(lengths, training, 1)
    flat = [index for step in steps for index in step]
    count = len(lengths)
    assert all(sorted(flat[n * count : (n + 1) * count]) == list(range(count)) for n in range(epochs))
    full = size * accumulate
    assert all(
        len(step) == full or (number + 1) * full >= count for number, step in enumerate(steps[: -(-count // full)])
    )
    assert len(steps) == epochs * -(-count // full)


def test_the_order_depends_on_seed_round_and_epoch_alone() -> None:
    lengths = [(7 * n) % 50 for n in range(100)]
    training = TrainingSpec(batch_size=4, epochs=2, seed=5)
    steps = plan_steps(lengths, training, 1)
    assert plan_steps(lengths, training, 1) == steps
    assert steps[:25] != steps[25:]
    assert plan_steps(lengths, training, 2) != steps
    assert plan_steps(lengths, training.model_copy(update={"seed": 6}), 1) != steps


def test_examples_of_like_length_share_a_batch() -> None:
    lengths = [(37 * n) % 100 for n in range(100)]
    steps = plan_steps(lengths, TrainingSpec(batch_size=5), 1)
    spread = [max(lengths[n] for n in step) - min(lengths[n] for n in step) for step in steps]
    assert sum(spread) / len(spread) < 35  # of a plain shuffle: about 67


def test_max_steps_ends_the_plan_early() -> None:
    training = TrainingSpec(batch_size=4, epochs=100, max_steps=7)
    assert len(plan_steps([1] * 10, training, 1)) == 7
