"""The page docs/evidence.md: the same files give the same bytes."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from flexlora_simulation.evidence.markdown import markdown
from flexlora_simulation.evidence.summary import CLAIM, measured_on, results
from flexlora_simulation.evidence.table import Evidence, read

SHOWN = ("bucket", "flexlora-residual", "leak 0.1", "view", "view, leak 0.1", "oracle")
PAPER = "flexlora"
HEAD = f"""# Evidence

<!-- Made by scripts/evidence from the files in evidence/: change those, not this page. -->

Does it pay that every participant trains at its own rank, and under which rule? Each section below is a comparison of methods on
one workload: every method at the learning rate that is best for it on what participants who train have held out, then all of them
on the same seeds, with the same partition, resources and sampling.

*Less `{PAPER}`*: the mean of the differences, seed by seed, with its 95 % bootstrap interval (percentiles: too narrow for few).
*Global update*: at its largest rank. *Participants' mean*: what participants use, each the slice of its rank or of what it
holds, weighted by how many there are of each rank. *Bucket to oracle*: where that lies between everyone at the smallest rank and
everyone at the largest. With fewer than {CLAIM} seeds nothing is claimed. All results stay in, whichever way they go.
"""
CHOICE = """## Which rule, which ranks, which scaling

What to choose for a run: [rules](rules.md). Ranks that fit a machine: [hardware](hardware.md). Scaling: every comparison here
keeps one for all ranks ([strategies](operating.md#strategies)), so none of them decides that question.

The differences of participants' mean to the paper's rule, from all sections. **Bold**: the interval is above or below zero, with
at least {claim} seeds.

{table}

The default changes when a rule is above `flexlora` with its interval in every mix on language data, and nowhere below it
beyond noise.
"""
AGAIN = """## Again

```sh
scripts/evidence                                     # this page and its figures, from evidence/ alone
scripts/evidence run NAME --data DATA --model MODEL  # experiments/comparisons/NAME.yaml, for hours; broken off, it goes on
scripts/evidence import KIND results.jsonl           # results of scripts/bench rules: teacher, teacher-quick, banking77
```

`flexlora-sim compare FILE` runs a comparison of one's own. A file in `evidence/` holds every run, those that chose the learning
rates too, beside the definition and the versions of the software; `flexlora_simulation.evidence.table` reads it as a table."""


def page(folder: Path, drawn: Mapping[str, Mapping[str, str]], planned: Mapping[str, str]) -> str:
    """The whole page from the files in `folder`.

    drawn: by comparison, its figures' files in docs/evidence/ with what they show. planned: comparisons with their titles.
    """
    found = everything(folder)
    parts = [HEAD, CHOICE.format(claim=CLAIM, table=overview(found))]
    parts += [_section(evidence, folder, drawn.get(evidence.name, {})) for evidence in found]
    missing = [f"- `{name}`: {title}" for name, title in planned.items() if name not in {one.name for one in found}]
    if missing:
        parts.append("## Not run yet\n\n" + "\n".join(missing) + "\n")
    return "\n".join((*parts, AGAIN)) + "\n"


def everything(folder: Path) -> list[Evidence]:
    """All files in the order of their names. Raises: DataError."""
    return [read(path) for path in sorted(folder.glob("*.json"))]


def overview(found: Sequence[Evidence]) -> str:
    """A row for each cell of each comparison with the paper's rule in it."""
    lines = [
        f"| | seeds | {' | '.join(f'`{name}`' for name in SHOWN)} |",
        "| --- | ---: " + "| ---: " * len(SHOWN) + "|",
    ]
    return "\n".join([*lines, *(line for evidence in found for line in _overview_lines(evidence))])


def _overview_lines(evidence: Evidence) -> Iterator[str]:
    for cell in evidence.population:
        for on in measured_on(evidence, cell)[:1] if evidence.baseline == PAPER else ():
            less = {result.method: (result.used.less, result.seeds) for result in results(evidence, cell, on)}
            seeds = min(n for _, n in less.values())
            cells = []
            for name in SHOWN:
                interval, n = less.get(name, (None, 0))
                told = (
                    ""
                    if interval is None
                    else f"{100 * interval.mean:+.1f}"
                    if evidence.percent
                    else f"{interval.mean:+.3f}"
                )
                sure = interval is not None and n >= CLAIM and (interval.low > 0 or interval.high < 0)
                cells.append(f"**{told}**" if sure else told)
            yield f"| {', '.join(filter(None, (evidence.title, cell)))} | {seeds} | {' | '.join(cells)} |"


def _section(evidence: Evidence, folder: Path, drawn: Mapping[str, str]) -> str:
    notes = folder / f"{evidence.name}.md"
    images = [f"![{told}](evidence/{name})" for name, told in drawn.items()]
    software = ", ".join(f"{name} {version}" for name, version in evidence.software.items())
    source = f"From [`evidence/{evidence.name}.json`](../evidence/{evidence.name}.json); {software}."
    read_so = [notes.read_text(encoding="utf-8").strip()] if notes.exists() else []
    parts = [f"## {evidence.title}", evidence.about.strip(), *images, markdown(evidence), *read_so, source]
    return "\n\n".join(filter(None, parts)) + "\n"
