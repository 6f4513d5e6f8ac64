"""What an agent says of a training, from whatever its training loop measured."""

import pytest

from flexlora_client.agent.reporter import format_trained

STANDARD = {"train_loss": 2.50712, "train_steps": 45.0, "train_steps_planned": 45.0, "train_seconds": 13.95}


@pytest.mark.parametrize(
    ("metrics", "sentence"),
    [
        (
            STANDARD | {"train_predictions": 1440.0, "heldout_loss": 1.949, "heldout_exact_match": 0.0},
            "loss 2.507 in 45 steps and 14 s; held out: loss 1.949, exact_match 0",
        ),
        (
            {"train_loss": 0.5, "train_steps": 1.0, "train_seconds": 0.26, "micro_batch": 2.0},
            "loss 0.5 in 1 step and 0.3 s, micro_batch 2",
        ),
        ({"train_loss": 0.5}, "loss 0.5"),
        ({"perplexity": 3.5, "heldout_loss": 1.0}, "trained, perplexity 3.5; held out: loss 1"),
        ({}, "trained"),
    ],
)
def test_what_is_said_of_a_training(metrics: dict[str, float], sentence: str) -> None:
    assert format_trained(metrics) == sentence
