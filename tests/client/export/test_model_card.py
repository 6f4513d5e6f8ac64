"""The model card of an export."""

from dataclasses import replace
from typing import Any

import yaml

from flexlora_client.export.limits import adapter_notes
from flexlora_client.export.model_card import Form, model_card
from flexlora_client.export.origin import Origin
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.status import RankCount
from tests.support.kit import spec

CLASSIFIER = {"id": "org/base", "revision": "0123abc", "task_type": "SEQ_CLS", "labels": ["bird", 'a "fish"']}
HEAD = {"name": "score.weight", "shape": [2, 24]}
EXACT = Form("exact", "as it is served")


def run(**changes: Any) -> RunSpec:
    return RunSpec.model_validate(spec(**changes), strict=False)


def origin(run: RunSpec, **known: Any) -> Origin:
    return replace(Origin(run, round=3, rank=8, metrics={}, sha256="ab" * 32), **known)


def front_matter(card: str) -> Any:
    return yaml.safe_load(card.split("---\n")[1])


def test_it_names_base_labels_and_how_to_load() -> None:
    classifier = run(model=CLASSIFIER, extra=[HEAD])
    card = model_card(origin(classifier, metrics={"loss": 0.25}), EXACT, {})
    assert front_matter(card) == {
        "base_model": "org/base",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-classification",
        "tags": ["lora", "federated-learning", "flexlora"],
    }
    assert "averaged over the participants" in card
    code = card.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert r'id2label={0: "bird", 1: "a \"fish\""}, ignore_mismatched_sizes=True)' in code
    assert 'revision="0123abc"' in code
    assert "| loss | 0.25 |" in card
    local = model_card(origin(run(model={"id": "/srv/base"}), own=True), EXACT, {})
    assert "base_model:" not in local
    assert "trained by one participant" in local
    assert "None were reported" in local


def test_a_head_that_was_not_trained_must_be_the_base_models_own() -> None:
    """A random one in its place, which `ignore_mismatched_sizes` would make without an error, is not what the adapter fits."""
    assert "ignore_mismatched_sizes" not in model_card(origin(run(model=CLASSIFIER)), EXACT, {})


def test_it_tells_where_the_adapter_comes_from() -> None:
    counts = (RankCount(rank=2, participants=3), RankCount(rank=2, hold_rank=8, participants=1))
    made = run(robust=[{"kind": "multi-krum", "byzantine_share": 0.2}], error_bound=1.05)
    card = model_card(origin(made, by_rank=counts, energy=0.9731), EXACT, {"adapter_model.safetensors": "cd" * 32})
    assert "- **Run:** run, round 3 of 2" in card
    assert "- **Participants of the round:** 3 of rank 2, 1 of rank 2 (holding 8)" in card
    assert "- **Energy kept at this rank:** 97.31 %" in card
    assert '- **Strategy:** flexlora, {"robust": [{"kind": "multi-krum", "byzantine_share": 0.2' in card
    assert '"error_bound": 1.05' in card
    assert f"| adapter_model.safetensors | `{'cd' * 32}` |" in card
    assert f"SHA-256 `{'ab' * 32}`" in card


def test_a_merged_model_is_one_of_transformers() -> None:
    card = model_card(origin(run(model=CLASSIFIER)), Form("merged", "merged, in bfloat16"), {})
    told = front_matter(card)
    assert (told["library_name"], told["base_model_relation"]) == ("transformers", "finetune")
    assert "lora" not in told["tags"]
    assert "peft" not in card.split("```python\n")[1].split("```")[0]
    assert "run.json" not in card


def test_a_large_rank_is_noted() -> None:
    [note] = adapter_notes({"r": 1024, "lora_alpha": 1024}, run())
    assert "rank 1024 is above 512" in note
    [note] = adapter_notes({"r": 8, "lora_alpha": 8, "rank_pattern": {"q_proj": 768}}, run())[1:]
    assert "rank 768 is above 512" in note
