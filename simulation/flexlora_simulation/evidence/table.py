"""What a comparison found, as one small file: every run with its figures by round, the definition, the software.

The file is JSON with a run on each line, so that a version history shows which runs came. `rows` is the same as a tidy table:

    import pandas as pd
    from flexlora_simulation.evidence.table import read
    table = pd.DataFrame(read(Path("evidence/teacher.json")).rows())
"""

import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from flexlora_simulation.errors import DataError

DIGITS = 5  # significant, of figures in the file
SOFTWARE = ("flexlora", "torch", "transformers", "peft", "numpy")  # that figures depend on


@dataclass(frozen=True)
class Run:
    """One method at one learning rate and seed.

    cell: the name of a variant of the experiment, empty where there is one only.
    split: "tuning" runs chose the rate, on what seen participants held out; "measured" ones are the result. Where the comparison
    is `tuned_by` the loss, the values of "tuning" runs are losses.
    rounds: those that were measured; by round, in this order, are all figures below.
    bytes_up, bytes_down, cpu_seconds: of all participants' trainings since the first round; None: not known.
    values: the metric by what it was measured on ("test", "unseen", "heldout") and by the rank of the slice.
    uses: the rank of the slice that participants use, by the rank that they afford.
    """

    cell: str
    method: str
    rate: float
    seed: int
    split: Literal["tuning", "measured"]
    rounds: tuple[int, ...]
    values: Mapping[str, Mapping[int, tuple[float, ...]]]
    uses: Mapping[int, int]
    bytes_up: tuple[int, ...] | None = None
    bytes_down: tuple[int, ...] | None = None
    cpu_seconds: tuple[float, ...] | None = None

    def whole(self, on: str) -> tuple[float, ...]:
        """By round, of the global update at the largest rank that it has."""
        return self.values[on][max(self.values[on])]

    def used(self, on: str, rank: int) -> tuple[float, ...]:
        """By round, of what participants use who afford this rank."""
        return self.values[on][self.uses[rank]]


@dataclass(frozen=True)
class Evidence:
    """A comparison with all its runs.

    title, about: a heading and a paragraph for readers, in Markdown. percent: whether figures are shares, shown in per cent.
    population: by cell, how many participants afford which rank. definition: how it was run. software: versions by package.
    """

    name: str
    title: str
    about: str
    metric: str
    higher_is_better: bool
    percent: bool
    baseline: str
    population: Mapping[str, Mapping[int, int]]
    definition: Mapping[str, Any]
    software: Mapping[str, str]
    runs: tuple[Run, ...]

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row for each figure: cell, method, rate, seed, split, on, rank, metric, value, rounds, and its cost by then."""
        for run in self.runs:
            for on, ranks in run.values.items():
                for rank, values in ranks.items():
                    for n, value in enumerate(values):
                        costs = {name: _at(getattr(run, name), n) for name in ("bytes_up", "bytes_down", "cpu_seconds")}
                        place = {"cell": run.cell, "method": run.method, "rate": run.rate, "seed": run.seed}
                        figure = {"on": on, "rank": rank, "metric": self.metric, "value": value}
                        yield {**place, "split": run.split, **figure, "rounds": run.rounds[n], **costs}


def _at(values: tuple[Any, ...] | None, n: int) -> Any:
    return None if values is None else values[n]


def write(evidence: Evidence, path: Path) -> None:
    """The file; the same evidence gives the same bytes."""
    head = json.dumps(asdict(replace(evidence, runs=())), indent=1, ensure_ascii=False)
    runs = ",\n".join(json.dumps(_told(run), ensure_ascii=False) for run in evidence.runs)
    content = head.removesuffix("[]\n}") + f"[\n{runs}\n]\n}}\n"
    path.write_text(content, encoding="utf-8")


def _told(run: Run) -> dict[str, Any]:
    told = {name: value for name, value in asdict(run).items() if value is not None}
    told["values"] = {
        on: {rank: [rounded(value) for value in values] for rank, values in ranks.items()}
        for on, ranks in told["values"].items()
    }
    return told


def rounded(value: float) -> float:
    """To the digits that the file keeps."""
    return float(f"{value:.{DIGITS}g}")


def read(path: Path) -> Evidence:
    """Raises: DataError, where it is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        population = {cell: _by_rank(counts) for cell, counts in content["population"].items()}
        return Evidence(**{**content, "population": population, "runs": tuple(map(run_of, content["runs"]))})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path} is no file of a comparison: {error!r}") from error


def run_of(told: Mapping[str, Any]) -> Run:
    """A run as it was, from JSON's types."""
    values = {
        on: {rank: tuple(by_round) for rank, by_round in _by_rank(ranks).items()}
        for on, ranks in told["values"].items()
    }
    lists = {name: tuple(value) for name, value in told.items() if isinstance(value, list)}
    return Run(**{**told, **lists, "values": values, "uses": _by_rank(told["uses"])})


def _by_rank(given: Mapping[str, Any]) -> dict[int, Any]:
    return {int(rank): value for rank, value in given.items()}


def software() -> dict[str, str]:
    """The versions that are installed."""
    return {"python": platform.python_version(), **{name: version(name) for name in SOFTWARE}}
