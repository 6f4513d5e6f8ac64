"""How a rank and a rank pattern become one rank a module, and a scaling rule one alpha a module.

The pattern's meaning is PEFT's (`LoraConfig.rank_pattern`): a key names every module that it equals or that ends with
`.key`. Keys are literal here, never regular expressions: they come from the network. Of several matching keys the longest
wins, and `adapter_config.json` lists them longest first, so that PEFT's first-match rule resolves the same way.

No module has a higher rank than its weight: a smaller one is capped, in the slices, the uploads and the global update.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TypeVar

from flexlora_shared.messages.runs import ModuleSpec

T = TypeVar("T")


def lora_scaling(rank: int, alpha: float, use_rslora: bool) -> float:
    """`alpha / rank`, or `alpha / sqrt(rank)` with rsLoRA (Kalajdzievski 2023, arXiv 2312.03732)."""
    return alpha / math.sqrt(rank) if use_rslora else alpha / rank


def matches(module: str, key: str) -> bool:
    """Whether pattern key `key` names `module`."""
    return module == key or module.endswith(f".{key}")


def _keys_of(module: str) -> Iterator[str]:
    """Every key that names `module`, longest first; few, where patterns and runs may have tens of thousands of names."""
    yield module
    while "." in module:
        module = module.partition(".")[2]
        yield module


def by_pattern(module: str, default: T, pattern: Mapping[str, T]) -> T:
    """The pattern's value for `module`, or `default` where no key names it."""
    return next((pattern[key] for key in _keys_of(module) if key in pattern), default)


def capped(module: ModuleSpec, rank: int) -> int:
    """`rank`, or the largest that the module's weight can have where that is less."""
    return min(rank, module.out_features, module.in_features)


def module_ranks(modules: Iterable[ModuleSpec], rank: int, pattern: Mapping[str, int]) -> dict[str, int]:
    """The rank of every module by its name, capped."""
    return {module.name: capped(module, by_pattern(module.name, rank, pattern)) for module in modules}


def capped_pattern(modules: Collection[ModuleSpec], rank: int, pattern: Mapping[str, int]) -> dict[str, int]:
    """A pattern that gives every module its capped rank without knowing its shape: what PEFT must be told.

    Equal to `pattern` where no module is capped; else with the full names of those that are, and of modules that such a
    name would also match.
    """
    return completed(pattern, module_ranks(modules, rank, pattern), rank)


def completed(pattern: Mapping[str, T], values: Mapping[str, T], default: T) -> dict[str, T]:
    """The pattern with the full names of modules added where it gives another value than `values`, by module, has."""
    whole = dict(pattern)
    for _ in range(2):  # first those modules, then the ones whose names end with the name of such a module
        whole |= {name: own for name, own in values.items() if by_pattern(name, default, whole) != own}
    return whole


def held_ranks(rank: int, pattern: Mapping[str, int], hold_rank: int | None) -> tuple[int, dict[str, int]]:
    """The rank and pattern of the slice that is held: every module at `hold_rank`, or at what it trains where that is more."""
    if hold_rank is None:
        return rank, dict(pattern)
    larger = any(own > hold_rank for own in pattern.values())
    return hold_rank, {key: max(own, hold_rank) for key, own in pattern.items()} if larger else {}


def holds_more(modules: Collection[ModuleSpec], rank: int, pattern: Mapping[str, int], hold_rank: int | None) -> bool:
    """Whether some module is held at a larger rank than it is trained at."""
    if hold_rank is None:  # as of most: each task asks, and runs may have thousands of modules
        return False
    held = held_ranks(rank, pattern, hold_rank)
    return module_ranks(modules, *held) != module_ranks(modules, rank, pattern)


def unmatched_keys(modules: Iterable[str], pattern: Mapping[str, object]) -> list[str]:
    """Pattern keys that name no module: a misspelling that would otherwise be ignored silently."""
    matched = {key for module in modules for key in _keys_of(module) if key in pattern}
    return [key for key in pattern if key not in matched]


def longest_first(pattern: Mapping[str, T]) -> dict[str, T]:
    """The pattern in PEFT's order of precedence; also its canonical form."""
    return dict(sorted(pattern.items(), key=lambda item: (-len(item[0]), item[0])))
