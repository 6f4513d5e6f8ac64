"""Deals examples to participants; the same draw for the same items, options and seed."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

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


@dataclass(frozen=True)
class Dealt:
    """What one participant was dealt. unit: who bears the same is unseen together, as the participants of one group are."""

    name: str
    indices: Sequence[int]
    unit: str


def deal(items: Sequence[Item], partition: Partition, seed: int) -> tuple[Part, ...]:
    """The parts of all participants, the unseen ones last; groups that the data set keeps apart are a participant each.

    Raises:
        ExperimentError: they cannot be dealt so.
    """
    generator = np.random.default_rng(seed)
    own = [index for index, item in enumerate(items) if not item.unseen]
    dealt = [
        replace(one, indices=[own[place] for place in one.indices])
        for one in _BY[partition.by]([items[index] for index in own], partition, generator)
    ]
    if fewest := [one for one in dealt if len(one.indices) < partition.smallest]:
        raise ExperimentError(
            f"partition: {fewest[0].name} has {len(fewest[0].indices)} examples, fewer than {partition.smallest}; "
            "lower smallest or participants"
        )
    unseen = _unseen(dealt, partition, generator)
    parts = [
        _part(one, 0.0 if one.unit in unseen else partition.heldout, one.unit not in unseen, generator) for one in dealt
    ]
    return (*sorted(parts, key=lambda part: not part.seen), *_kept_apart(items, [part.name for part in parts]))


def _kept_apart(items: Sequence[Item], taken: Sequence[str]) -> list[Part]:
    by_group = defaultdict[str, list[int]](list)
    for index, item in enumerate(items):
        if item.unseen:
            by_group[item.group or "unseen"].append(index)
    names = client_names([*taken, *sorted(by_group)])[len(taken) :]
    return [
        Part(name, tuple(by_group[group]), (), seen=False) for name, group in zip(names, sorted(by_group), strict=True)
    ]


def _unseen(dealt: Sequence[Dealt], partition: Partition, generator: np.random.Generator) -> frozenset[str]:
    """The units that never train: the groups named, or at random as many as hold the number of participants wanted."""
    sizes = Counter(one.unit for one in dealt)
    if partition.unseen_groups:
        for group in partition.unseen_groups:
            if group not in sizes:
                raise ExperimentError(
                    f"partition.unseen_groups: {group!r} is no group that participants have for themselves; there are "
                    f"{', '.join(list(sizes)[:20])}"
                )
        chosen = frozenset(partition.unseen_groups)
    else:
        units, missing, taken = sorted(sizes), partition.unseen, set[str]()
        for place in generator.permutation(len(units)):
            if sizes[units[place]] <= missing:
                taken.add(units[place])
                missing -= sizes[units[place]]
        if missing:
            raise ExperimentError(
                f"partition.unseen: {partition.unseen} participants are not whole groups; the groups have "
                f"{', '.join(map(str, sorted(set(sizes.values()))))} participants each"
            )
        chosen = frozenset(taken)
    if len(chosen) == len(sizes):
        raise ExperimentError("partition: nobody is left to train; lower unseen, or name fewer unseen_groups")
    return chosen


def _uniform(items: Sequence[Item], partition: Partition, generator: np.random.Generator) -> list[Dealt]:
    count = _count(partition)
    order = generator.permutation(len(items))
    return _numbered([order[n::count].tolist() for n in range(count)])


def _by_label(items: Sequence[Item], partition: Partition, generator: np.random.Generator) -> list[Dealt]:
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
            return _numbered(owned)
    raise ExperimentError(
        f"partition: {ATTEMPTS} draws left a participant with fewer than {partition.smallest} examples; lower participants or "
        "smallest, or raise alpha"
    )


def _by_size(items: Sequence[Item], partition: Partition, generator: np.random.Generator) -> list[Dealt]:
    count = _count(partition)
    spare = len(items) - count * partition.smallest
    if spare < 0:
        raise ExperimentError(f"partition: {len(items)} examples are too few for {count} x {partition.smallest}")
    shares = generator.dirichlet(np.full(count, partition.alpha))
    cuts = partition.smallest * np.arange(1, count) + (np.cumsum(shares)[:-1] * spare).astype(int)
    return _numbered([own.tolist() for own in np.split(generator.permutation(len(items)), cuts)])


def _by_group(items: Sequence[Item], partition: Partition, generator: np.random.Generator) -> list[Dealt]:
    by_group = defaultdict[str, list[int]](list)
    for index, item in enumerate(items):
        if item.group is None:
            raise ExperimentError(
                "partition.by: the workload has no groups; deal its examples by label, size or uniform"
            )
        by_group[item.group].append(index)
    groups = sorted(by_group)
    count = len(groups) if partition.participants is None else partition.participants
    if count < len(groups):
        order = [groups[n] for n in generator.permutation(len(groups))]
        return _numbered([[index for group in order[n::count] for index in by_group[group]] for n in range(count)])
    dealt = []
    for place, group in enumerate(groups):
        pieces = count // len(groups) + (place < count % len(groups))
        own = generator.permutation(by_group[group]).tolist() if pieces > 1 else by_group[group]
        for n in range(pieces):
            dealt.append(Dealt(f"{group} {n + 1}" if pieces > 1 else group, own[n::pieces], group))
    names = client_names([one.name for one in dealt])
    return [replace(one, name=name) for one, name in zip(dealt, names, strict=True)]


_BY = {"uniform": _uniform, "label": _by_label, "size": _by_size, "group": _by_group}


def _part(dealt: Dealt, heldout: float, seen: bool, generator: np.random.Generator) -> Part:
    shuffled = generator.permutation(np.asarray(dealt.indices, dtype=int)).tolist()
    held = min(round(heldout * len(shuffled)), len(shuffled) - 1)  # who trains needs an example
    return Part(dealt.name, tuple(sorted(shuffled[held:])), tuple(sorted(shuffled[:held])), seen)


def _count(partition: Partition) -> int:
    if partition.participants is None:
        raise ExperimentError(f"partition.participants: say how many, to deal by {partition.by}")
    return partition.participants


def _numbered(owned: Sequence[Sequence[int]]) -> list[Dealt]:
    names = [f"participant-{number:05d}" for number in range(len(owned))]
    return [Dealt(name, own, name) for name, own in zip(names, owned, strict=True)]


def client_names(names: Sequence[str]) -> list[str]:
    """Names of groups as participants' names, all different: at most 64 letters, digits, spaces, dots, underscores, hyphens."""
    taken, found = set[str](), []
    for name in names:
        plain = "".join(c if c.isascii() and (c.isalnum() or c in " ._-") else "-" for c in name)
        plain = first = (plain if plain[:1].isalnum() else f"group {plain}")[:64]
        while plain in taken:
            tail = f" {len(taken)}"
            plain = first[: 64 - len(tail)] + tail
        taken.add(plain)
        found.append(plain)
    return found
