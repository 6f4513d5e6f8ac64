"""BERTScore against its formula, token by token."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from flexlora_simulation.errors import DataError
from flexlora_simulation.workloads.bertscore import BertScore
from tests.support.tiny_models import make_bert


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("encoder"))


def vectors(encoder: Path, text: str, layer: int) -> list[list[float]]:
    """Each token's vector, of a text alone, that of the special token in front first."""
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder)
    with torch.no_grad():
        made = tokenizer(text, return_tensors="pt")
        hidden: list[list[float]] = model.eval()(**made, output_hidden_states=True).hidden_states[layer][0].tolist()
    return hidden


def by_the_formula(candidate: list[list[float]], reference: list[list[float]]) -> float:
    """The paper's equations; the special token in front may be matched and does not count, as in the authors' package."""

    def cosine(one: list[float], other: list[float]) -> float:
        dot = sum(a * b for a, b in zip(one, other, strict=True))
        return dot / math.hypot(*one) / math.hypot(*other)

    recall = sum(max(cosine(x, y) for y in candidate) for x in reference[1:]) / (len(reference) - 1)
    precision = sum(max(cosine(x, y) for x in reference) for y in candidate[1:]) / (len(candidate) - 1)
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("layer", [1, 2])
def test_it_is_the_papers_formula(encoder: Path, layer: int) -> None:
    candidate, reference = "The bird sings", "A fish swims in the tree, far away"
    expected = by_the_formula(vectors(encoder, candidate, layer), vectors(encoder, reference, layer))
    assert BertScore(str(encoder), layer)([candidate], [reference]) == pytest.approx(expected, abs=1e-5)


def test_pairs_of_several_lengths_stay_together(encoder: Path) -> None:
    texts = ["a dog", "a much longer text about a bird in a tree", "fish"]
    assert BertScore(str(encoder))(texts, texts) == pytest.approx(1, abs=1e-6)
    one, other, third = (BertScore(str(encoder))([text], ["a bird"]) for text in texts)
    assert BertScore(str(encoder))(texts, ["a bird"] * 3) == pytest.approx((one + other + third) / 3, abs=1e-6)


def test_the_best_of_several_references_counts_and_nothing_scores_nothing(encoder: Path) -> None:
    score = BertScore(str(encoder))
    assert score(["a dog"], [("fish", "a dog")]) == pytest.approx(1, abs=1e-6)
    assert score(["", "a dog"], ["fish", "a dog"]) == pytest.approx(0.5, abs=1e-6)


def test_an_encoder_that_does_not_load_and_a_layer_too_many(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"options\.scorer: .* is no encoder that loads"):
        BertScore(str(tmp_path))(["a"], ["b"])
    with pytest.raises(DataError, match=r"scorer_layer: 3, but .* has 2 layers"):
        BertScore(str(encoder), 3)(["a"], ["b"])
