"""Results of `scripts/bench rules`, JSON lines, as the file of a comparison."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.lib.rules.banking77 import federation
from benchmarks.lib.rules.rule import PAPER, Rule, chosen, rules
from benchmarks.lib.rules.teacher.comparing import POPULATIONS
from flexlora_simulation.evidence.resumable import read_lines
from flexlora_simulation.evidence.table import Evidence, Run, software

Line = Mapping[str, Any]
TUNING = 1000  # in the place of a seed
TEACHER = Evidence(
    name="teacher-rules",
    title="A problem with a known answer",
    about="A frozen network of three layers and a teacher whose weights differ from it by a matrix of rank 16 in each; twenty "
    "participants, eight a round, thirty rounds of twenty AdamW steps ([in full](rules.md#a-problem-with-a-known-answer)). "
    "*Rich*: many examples and nearly exact labels. *Noisy*: few and noisy ones. *Two-tier*: half of rank 2, half of rank 16. "
    "*Low-heavy*: 14 of rank 2, 3 of 4, 2 of 8, 1 of 16. Agreement with the teacher in %, mean of the last five rounds; "
    "learning rates from other problems.",
    metric="agreement",
    higher_is_better=True,
    percent=True,
    baseline=PAPER,
    population={},
    definition={"command": "scripts/bench rules --results teacher.jsonl"},
    software={},
    runs=(),
)
QUICK = replace(
    TEACHER,
    name="teacher-rules-quick",
    title="The same, every rule, in its quick form",
    about="Two learning rates only, which is too few for `ffa`, `fedsvd` and `rolora`: read these as lower bounds.",
    definition={"command": "scripts/bench rules --quick --results quick.jsonl"},
)
BANKING77 = replace(
    TEACHER,
    name="banking77-rules",
    title="BANKING77 with a frozen head",
    about="Language data. MiniLM (22 million weights), LoRA on query and value, the head frozen at 77 random orthonormal "
    "directions, so that rank matters; thirty participants by Dirichlet(0.5), half of rank 1, half of rank 8; ten a round, 22 "
    "rounds of six AdamW steps on 24 questions ([in full](rules.md#banking77)). Accuracy in %, on the 3,080 test questions.",
    metric="accuracy",
    definition={"command": "scripts/bench rules --banking77 --data banking77/ --results banking77.jsonl"},
)
KINDS = {"teacher": TEACHER, "teacher-quick": QUICK, "banking77": BANKING77}


def imported(kind: str, results: Path) -> Evidence:
    """The file's runs, of each rule those at its best rate and what was tried; where there are none yet, those at one rate.

    Raises: ValueError, with the kinds there are.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no kind {kind!r}: choose from {', '.join(KINDS)}")
    runs = list(_banking77(read_lines(results)) if kind == "banking77" else _teacher(read_lines(results)))
    cells, about = dict.fromkeys(run.cell for run in runs if run.split == "measured"), KINDS[kind].about
    kept = [run for cell in cells for run in _at_best_rates([run for run in runs if run.cell == cell])]
    if not kept:
        kept = _at_one_rate([run for run in runs if run.split == "measured"])
        about += f" **Not tuned**: learning rate {kept[0].rate:g} for all, whichever is best for each." if kept else ""
    population = {cell: _counts(_ranks(cell)) for cell in dict.fromkeys(run.cell for run in kept)}
    return replace(KINDS[kind], about=about, population=population, software=software(), runs=tuple(kept))


def _teacher(lines: Iterator[Line]) -> Iterator[Run]:
    for line in lines:
        cell, outcomes = f"{line['population']}, {line['kind']}", line["outcomes"]
        if line["split"] == "validation":  # all seeds in one
            yield _run(line, cell, TUNING, fmean(one["whole"] for one in outcomes), {})
            continue
        for seed, one in enumerate(outcomes):
            by_rank = {int(rank): value for rank, value in one["used"].items()}
            yield _run(line, cell, seed, one["whole"], by_rank)


def _banking77(lines: Iterator[Line]) -> Iterator[Run]:
    for line in lines:
        yield _run(line, "", line["seed"], line["whole"], {1: line["used"], 8: line["whole"]})


def _run(line: Line, cell: str, seed: int, whole: float, used: Mapping[int, float]) -> Run:
    """whole, used (by the rank that a participant affords): in %."""
    (rule,), ranks = chosen([line["rule"]]), _ranks(cell)
    largest = max(rule.ranks_of(ranks))
    uses = {rank: _used_rank(rule, rank, ranks) for rank in used}
    figures = {uses[rank]: (value / 100,) for rank, value in used.items()} | {largest: (whole / 100,)}
    tuning = line["split"] == "validation"
    on, split = ("heldout", "tuning") if tuning else ("test", "measured")
    values = {on: {largest: (whole / 100,)} if tuning else dict(sorted(figures.items()))}
    return Run(cell, line["rule"], line["rate"], seed, split, (line["rounds"],), values, uses)  # type: ignore[arg-type]


def _used_rank(rule: Rule, rank: int, ranks: Sequence[int]) -> int:
    trained = rule.ranks_of(ranks)
    return rule.used_rank(dict(zip(ranks, trained, strict=True))[rank], max(trained))


def _at_one_rate(measured: Sequence[Run]) -> list[Run]:
    """Those at the rate at which most were measured."""
    rates = [run.rate for run in measured]
    return [run for run in measured if run.rate == max(sorted(set(rates)), key=rates.count)]


def _at_best_rates(runs: Sequence[Run]) -> Iterator[Run]:
    """A rule whose rate was not chosen is left out: another's rate may not suit it."""
    for name in (rule.name for rule in rules()):
        measured = [run for run in runs if run.method == name and run.split == "measured"]
        tuning = [run for run in runs if run.method == name and run.split == "tuning"]
        by_rate = {
            rate: [run.whole("heldout")[-1] for run in tuning if run.rate == rate] for rate in {r.rate for r in tuning}
        }
        best = max(by_rate, key=lambda rate: fmean(by_rate[rate]), default=None)
        at_best = [run for run in measured if run.rate == best]
        yield from (*tuning, *at_best) if at_best else ()


def _ranks(cell: str) -> Sequence[int]:
    return POPULATIONS[cell.split(",")[0]] if cell else federation.RANKS


def _counts(ranks: Sequence[int]) -> dict[int, int]:
    return {rank: list(ranks).count(rank) for rank in sorted(set(ranks))}
