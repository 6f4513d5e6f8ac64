"""Deals examples to participants; the same draw for the same items, options and seed."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flexlora_simulation.errors import ExperimentError
from flexlora_simulation.experiment import Partition
from flexlora_simulation.workloads.contract import Item

ATTEMPTS = 1000  # draws until every participant has `smallest` examples


@dataclass(frozen=True)
class Part:
    """What one participant has: indices into the training items. `seen`: whether it ever trains."""

    name: str
    train: tuple[int, ...]
    heldout: tuple[int, ...]
    seen: bool = True


def deal(items: Sequence[Item], partition: Partition, seed: int) -> tuple[Part, ...]:
    """The parts of all participants, the unseen ones last; groups that the data set keeps apart are a participant each.

    Raises:
        ExperimentError: they cannot be dealt so.
    """
    generator = np.random.default_rng(seed)
    own = [index for index, item in enumerate(items) if not item.unseen]
    dealt = [
        (name, [own[n] for n in places])
        for name, places in _BY[partition.by]([items[index] for index in own], partition, generator)
    ]
    if partition.unseen >= len(dealt):
        raise ExperimentError(f"partition.unseen: {partition.unseen} of {len(dealt)} participants; some must train")
    unseen = frozenset(generator.permutation(len(dealt))[: partition.unseen].tolist())
    parts = [
        _part(name, indices, 0.0 if number in unseen else partition.heldout, number not in unseen, generator)
        for number, (name, indices) in enumerate(dealt)
    ]
    return (*sorted(parts, key=lambda part: not part.seen), *_kept_apart(items))


def _kept_apart(items: Sequence[Item]) -> list[Part]:
    by_group = defaultdict[str, list[int]](list)
    for index, item in enumerate(items):
        if item.unseen:
            by_group[item.group or "unseen"].append(index)
    return [Part(_client_name(group), tuple(by_group[group]), (), seen=False) for group in sorted(by_group)]


Dealt = list[tuple[str, list[int]]]  # name and indices of each participant


def _uniform(items: Sequence[Item], partition: Partition, generator: np.random.Generator) -> Dealt:
    count = _count(partition)
    order = generator.permutation(len(items))
    return [(_name(n), order[n::count].tolist()) for n in range(count)]


def _by_label(items: Sequence[Item], partition: Partition, generator: np.random.Generator) -> Dealt:
    """Hsu et al. 2019 (arXiv 1909.06335), each label's examples in shares of Dirichlet(alpha)."""
    count, by_label = _count(partition), defaultdict[str, list[int]](list)
    for index, item in enumerate(items):
        if item.label is None:
            raise ExperimentError(
                "partition.by: the workload has no labels; deal its examples by group, size or uniform"
            )
        by_label[item.label].append(index)
    for _ in range(ATTEMPTS):
        owned: list[list[int]] = [[] for _ in range(count)]
        for label in sorted(by_label):
            shuffled = generator.permutation(by_label[label])
            cuts = np.cumsum(generator.dirichlet(np.full(count, partition.alpha)))[:-1]
            for own, piece in zip(owned, np.split(shuffled, (cuts * len(shuffled)).astype(int)), strict=True):
                own.extend(piece.tolist())
        if min(map(len, owned)) >= partition.smallest:
            return [(_name(n), own) for n, own in enumerate(owned)]
    raise ExperimentError(
        f"partition: {ATTEMPTS} draws left a participant with fewer than {partition.smallest} examples; lower participants or "
        "smallest, or raise alpha"
    )


def _by_size(items: Sequence[Item], partition: Partition, generator: np.random.Generator) -> Dealt:
    count = _count(partition)
    spare = len(items) - count * partition.smallest
    if spare < 0:
        raise ExperimentError(f"partition: {len(items)} examples are too few for {count} x {partition.smallest}")
    shares = generator.dirichlet(np.full(count, partition.alpha))
    cuts = np.cumsum(partition.smallest + np.floor(shares * spare).astype(int))[:-1]
    return [(_name(n), own.tolist()) for n, own in enumerate(np.split(generator.permutation(len(items)), cuts))]


def _by_group(items: Sequence[Item], partition: Partition, generator: np.random.Generator) -> Dealt:
    by_group = defaultdict[str, list[int]](list)
    for index, item in enumerate(items):
        if item.group is None:
            raise ExperimentError(
                "partition.by: the workload has no groups; deal its examples by label, size or uniform"
            )
        by_group[item.group].append(index)
    groups = sorted(by_group)
    if partition.participants is None:
        return [(_client_name(group), by_group[group]) for group in groups]
    count = partition.participants
    if count > len(groups):
        raise ExperimentError(f"partition.participants: {count}, but there are {len(groups)} groups")
    order = [groups[n] for n in generator.permutation(len(groups))]
    return [(_name(n), [index for group in order[n::count] for index in by_group[group]]) for n in range(count)]


_BY = {"uniform": _uniform, "label": _by_label, "size": _by_size, "group": _by_group}


def _part(name: str, indices: Sequence[int], heldout: float, seen: bool, generator: np.random.Generator) -> Part:
    shuffled = generator.permutation(np.asarray(indices, dtype=int)).tolist()
    held = round(heldout * len(shuffled))
    return Part(name, tuple(sorted(shuffled[held:])), tuple(sorted(shuffled[:held])), seen)


def _count(partition: Partition) -> int:
    if partition.participants is None:
        raise ExperimentError(f"partition.participants: say how many, to deal by {partition.by}")
    return partition.participants


def _name(number: int) -> str:
    return f"participant-{number:05d}"


def _client_name(group: str) -> str:
    """The group's name as a participant's: at most 64 letters, digits, spaces, dots, underscores and hyphens."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in " ._-") else "-" for c in group)[:64]
    return plain if plain[:1].isalnum() else f"group {plain}"[:64]
