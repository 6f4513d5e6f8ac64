"""Patterns resolve as PEFT resolves them; PEFT itself is the judge."""

import math
from collections.abc import Iterable
from typing import NoReturn

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.utils.other import get_pattern_key

from flexlora_shared.messages.runs import ModuleSpec
from flexlora_shared.ranks import (
    by_pattern,
    capped_pattern,
    held_ranks,
    holds_more,
    longest_first,
    lora_scaling,
    matches,
    module_ranks,
    unmatched_keys,
)

# PEFT reads keys as regular expressions; among these names a dot matches nothing but a dot.
segments = st.sampled_from(["a", "ab", "layers", "q_proj", "v_proj", "0", "11"])
names = st.lists(segments, min_size=1, max_size=4).map(".".join)
patterns = st.dictionaries(names, st.integers(1, 64), max_size=6)
modules_by_name = st.dictionaries(names, st.tuples(st.integers(1, 64), st.integers(1, 64)), min_size=1, max_size=5)


def modules_of(names: Iterable[str]) -> list[ModuleSpec]:
    """Modules of these names, too large to be capped."""
    return [ModuleSpec(name=name, out_features=4096, in_features=4096) for name in names]


@given(names, patterns, st.integers(1, 64))
def test_a_module_gets_the_rank_that_peft_gives_it(module: str, pattern: dict[str, int], rank: int) -> None:
    served = longest_first(pattern)
    peft_rank = served.get(get_pattern_key(list(served), module), rank)
    assert by_pattern(module, rank, pattern) == peft_rank
    assert by_pattern(module, rank, served) == peft_rank


@given(st.lists(names, max_size=5), patterns | st.just({"": 3, ".": 4, "a.": 5}))
def test_lookups_agree_with_the_definition_of_a_match(modules: list[str], pattern: dict[str, int]) -> None:
    ranks = module_ranks(modules_of(modules), 0, pattern)
    for module in modules:
        assert ranks[module] == pattern.get(
            max((key for key in pattern if matches(module, key)), key=len, default="?"), 0
        )
    unmatched = [key for key in pattern if not any(matches(module, key) for module in modules)]
    assert unmatched_keys(modules, pattern) == unmatched


class NeverSearched(dict[str, int]):
    """A pattern in which single keys can be looked up, but that refuses to be walked through."""

    def __iter__(self) -> NoReturn:
        raise AssertionError("every key was looked at")


def test_a_module_is_looked_up_not_searched_for() -> None:
    pattern = NeverSearched({"q_proj": 8, "1.q_proj": 2})
    assert module_ranks(modules_of(["layers.1.q_proj", "q_proj", "v_proj"]), 4, pattern) == {
        "layers.1.q_proj": 2,
        "q_proj": 8,
        "v_proj": 4,
    }


def test_the_modules_are_walked_through_once() -> None:
    """All at the largest sizes a run and a request may have; an iterator cannot be walked through a second time."""
    modules = [f"layers.{index}.q_proj" for index in range(20_000)]
    keys = dict.fromkeys([*(f"{index}.q_proj" for index in range(20_000)), "q_proj", "k_proj"], 8)
    assert unmatched_keys(iter(modules), keys) == ["k_proj"]
    assert set(module_ranks(modules_of(modules), 4, keys).values()) == {8}


@given(patterns)
def test_the_canonical_form_does_not_depend_on_order(pattern: dict[str, int]) -> None:
    backwards = dict(reversed(pattern.items()))
    assert list(longest_first(pattern).items()) == list(longest_first(backwards).items())
    lengths = [len(key) for key in longest_first(pattern)]
    assert lengths == sorted(lengths, reverse=True)
    assert longest_first(pattern) == pattern


@given(names, names)
def test_a_key_names_whole_segments(module: str, key: str) -> None:
    ends = module.split(".")[-len(key.split(".")) :] == key.split(".")
    assert matches(module, key) == ends


@pytest.mark.parametrize(("module", "key"), [("q_proj", "proj"), ("xq_proj", "q_proj"), ("a.b.c", "a.b"), ("a", "a.a")])
def test_parts_of_a_segment_and_prefixes_do_not_match(module: str, key: str) -> None:
    assert not matches(module, key)


@pytest.mark.parametrize("key", [".*", "q.proj", "[a-z]+", "(a|q_proj)", "q_proj$", ""])
def test_keys_are_never_regular_expressions(key: str) -> None:
    assert module_ranks(modules_of(["layers.0.q_proj"]), 4, {key: 8}) == {"layers.0.q_proj": 4}
    assert unmatched_keys(["layers.0.q_proj"], {key: 8, "q_proj": 8}) == [key]


@given(modules_by_name, patterns, st.integers(1, 64))
def test_peft_gives_a_capped_module_its_rank(
    shapes: dict[str, tuple[int, int]], pattern: dict[str, int], rank: int
) -> None:
    """PEFT knows nothing of shapes: the pattern that it is told must hold the capped ranks, and nothing else must change."""
    modules = [ModuleSpec(name=name, out_features=d, in_features=k) for name, (d, k) in shapes.items()]
    ranks = module_ranks(modules, rank, pattern)
    assert ranks == {m.name: min(by_pattern(m.name, rank, pattern), m.out_features, m.in_features) for m in modules}
    served = longest_first(capped_pattern(modules, rank, pattern))
    assert {name: served.get(get_pattern_key(list(served), name), rank) for name in shapes} == ranks
    assert module_ranks(modules, rank, served) == ranks
    if ranks == {name: by_pattern(name, rank, pattern) for name in shapes}:
        assert served == pattern, "adapters of runs without small modules stay as they were"


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = torch.nn.Linear(12, 16)
        self.up_proj = torch.nn.Linear(16, 12)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Block() for _ in range(12))


PATTERNS: list[dict[str, int]] = [
    {},
    {"q_proj": 8},
    {"q_proj": 8, "layers.1.q_proj": 2},  # layers.11.q_proj is another module
    {"1.q_proj": 2, "up_proj": 3, "layers.11.up_proj": 1},
]


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_real_peft_model_has_these_ranks_and_scalings(pattern: dict[str, int], rslora: bool) -> None:
    alphas = {key: 3.0 * rank for key, rank in pattern.items()}
    config = LoraConfig(
        r=4,
        lora_alpha=7,
        target_modules=["q_proj", "up_proj"],
        rank_pattern=longest_first(pattern),
        alpha_pattern=longest_first(alphas),
        use_rslora=rslora,
    )
    model = get_peft_model(Model(), config)
    ranks = {
        name.removeprefix("base_model.model."): (module.r["default"], module.scaling["default"])
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and hasattr(module, "scaling")
    }
    assert len(ranks) == 24
    for name, (rank, scaling) in ranks.items():
        assert by_pattern(name, 4, pattern) == rank
        assert math.isclose(lora_scaling(rank, by_pattern(name, 7.0, alphas), rslora), scaling, rel_tol=1e-12)


@given(
    st.sampled_from([2, 4, 8]),
    st.dictionaries(st.sampled_from(["q_proj", "layers.0.q_proj", "mlp.up_proj"]), st.sampled_from([2, 4, 8])),
    st.sampled_from([None, 2, 4, 8]),
)
def test_a_module_is_held_at_the_larger_of_both_ranks(
    rank: int, pattern: dict[str, int], hold_rank: int | None
) -> None:
    hold_rank = None if hold_rank is None else max(rank, hold_rank)  # no less may be declared
    modules = [
        ModuleSpec(name="layers.0.q_proj", out_features=9, in_features=9),
        ModuleSpec(name="layers.1.q_proj", out_features=9, in_features=9),
        ModuleSpec(name="mlp.up_proj", out_features=3, in_features=9),  # capped at 3
    ]
    trained = module_ranks(modules, rank, pattern)
    held = module_ranks(modules, *held_ranks(rank, pattern, hold_rank))
    least = {module.name: min(hold_rank or 0, module.out_features) for module in modules}
    assert held == {name: max(own, least[name]) for name, own in trained.items()}
    assert holds_more(modules, rank, pattern, hold_rank) == (held != trained)
