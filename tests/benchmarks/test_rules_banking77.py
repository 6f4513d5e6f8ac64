"""BANKING77 with a frozen head, on a tiny encoder: the encoder without padding, a federation, the table."""

import pytest
import torch
from transformers import BertConfig, BertModel

from benchmarks.lib.rules.banking77.encoder import Encoder, LoRA, batch
from benchmarks.lib.rules.banking77.federation import RANKS, Examples, Federation, Task, federation, run
from benchmarks.lib.rules.banking77.frozen_head import table
from benchmarks.lib.rules.rule import chosen


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    config = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=50)
    model = BertModel(config).eval()  # type: ignore[no-untyped-call]
    return Encoder(model.requires_grad_(False))


@pytest.fixture(scope="module")
def task(encoder: Encoder) -> Task:
    generator = torch.Generator().manual_seed(0)
    embedded = tuple(torch.randn(int(n), 16, generator=generator) for n in torch.arange(6200) % 3 + 2)
    labels = torch.arange(6200) % 4
    examples = Examples(embedded, labels)
    return Task(encoder, torch.eye(16)[:4], examples, Examples(embedded[:10], labels[:10]))


def test_without_padding_the_encoder_is_the_library_s(encoder: Encoder) -> None:
    questions = [torch.tensor([2, 7, 9, 3]), torch.tensor([2, 5, 3]), torch.tensor([2, 4, 8, 1, 6, 3])]
    generator = torch.Generator().manual_seed(0)
    adapter = [
        LoRA(torch.randn(2, 16, generator=generator), torch.randn(16, 2, generator=generator) / 4) for _ in range(4)
    ]
    found = encoder.pooled(batch([encoder.embed(tokens) for tokens in questions]), adapter)
    merged = BertModel(encoder.model.config).eval()  # type: ignore[no-untyped-call]
    merged.load_state_dict(encoder.model.state_dict())
    for number, module in enumerate(
        part for layer in merged.encoder.layer for part in (layer.attention.self.query, layer.attention.self.value)
    ):
        module.weight.data += adapter[number].B @ adapter[number].A
    with torch.no_grad():
        wanted = [merged(tokens[None]).last_hidden_state[0].mean(0) for tokens in questions]
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-4, atol=1e-5)


def test_questions_are_dealt_once_and_what_is_measured_is_nobody_s(task: Task) -> None:
    dealt, again, other = (federation(task, seed, "validation") for seed in (0, 0, 1))
    owned = [index for part in dealt.owned for index in part]
    assert len(owned) == len(set(owned)) == 6000
    assert len(dealt.measured.labels) == 200  # what is left
    assert sorted(dealt.ranks) == sorted(RANKS)
    assert dealt.owned == again.owned != other.owned
    assert federation(task, 0, "test").measured is task.test


@pytest.mark.parametrize("name", ["flexlora", "view"])
def test_a_round(name: str, task: Task) -> None:
    given = Federation((1,) * 5 + (8,) * 5, tuple(tuple(range(n, n + 8)) for n in range(10)), task.test, 0)
    found = run(task, chosen([name])[0], 0.01, given, rounds=1)
    assert 0 <= found.whole <= 100
    assert found.used == (found.slice if name == "flexlora" else found.whole)
    assert found.tail > 0


def test_the_table_says_how_far_a_rule_comes_from_bucket_to_oracle() -> None:
    names, whole = ("bucket", "flexlora", "oracle"), (30.0, 40.0, 70.0)
    done = [
        {"rule": name, "rate": 0.005, "whole": value + seed, "used": value, "slice": value, "tail": 0.1}
        for name, value in zip(names, whole, strict=True)
        for seed in range(2)
    ]
    *_, flexlora, oracle = table(names, done).splitlines()
    assert "| 25% |" in flexlora
    assert "+30.0 [+30.0, +30.0] | 100% |" in oracle
