"""ROUGE-L against values worked out by hand."""

import pytest

from flexlora_client.training.evaluation.rouge import rouge_l


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("police killed the gunman", "police killed the gunman", 1.0),
        ("police kill the gunman", "police killed the gunman", 0.75),  # Lin 2004, section 3
        ("the gunman kill police", "police killed the gunman", 0.5),
        ("a b c d e", "a c e", 2 * 3 / 8),
        ("x", "a b c", 0.0),
        ("", "a", 0.0),
        ("", "", 0.0),
        ("Paris\n", " paris", 1.0),
    ],
)
def test_known_values(prediction: str, reference: str, expected: float) -> None:
    assert rouge_l(prediction, reference) == pytest.approx(expected)
    assert rouge_l(reference, prediction) == pytest.approx(expected)
