"""The tables of a comparison in Markdown."""

from collections.abc import Iterator, Sequence

from flexlora_simulation.evidence.bootstrap import Interval
from flexlora_simulation.evidence.summary import CLAIM, Cost, Figure, Result, at_an_end, costs, measured_on, results
from flexlora_simulation.evidence.table import Evidence

ON = {
    "unseen": "on the examples of participants that never trained",
    "test": "on the test examples",
    "heldout": "on what participants held out",
}


def markdown(evidence: Evidence) -> str:
    """All tables, cell by cell."""
    parts = list[str]()
    for cell in evidence.population:
        for on in measured_on(evidence, cell):
            found, place = results(evidence, cell, on), ", ".join([*([cell] if cell else []), ON[on]])
            parts.append(f"{place[0].upper()}{place[1:]}. {seeds_told(found)}.")
            parts.append(result_table(evidence, found))
            if len(found[0].by_rank) > 1:
                parts.append(rank_table(evidence, found))
        if ends := at_an_end(evidence, cell):
            names = ", ".join(f"`{name}`" for name in ends)
            parts.append(
                f"Best at the smallest or the largest learning rate tried, and perhaps better beyond: {names}."
            )
        on = next(iter(measured_on(evidence, cell)), "")
        level, each = costs(evidence, cell, on)
        if each:
            reached = f"participants' mean {ON[on]} is {_number(evidence, level)}"
            parts.append(f"Until {reached}, which every method reaches on average:")
            parts.append(cost_table(each))
    return "\n\n".join(parts)


def seeds_told(found: Sequence[Result]) -> str:
    """How many seeds there are, and whether they are enough for a claim."""
    seeds = min(result.seeds for result in found)
    told = f"{seeds} seed{'s' if seeds != 1 else ''}"
    return told if seeds >= CLAIM else f"{told}, fewer than {CLAIM}: **no claim**"


def result_table(evidence: Evidence, found: Sequence[Result]) -> str:
    """A row for each method: the global update and participants' mean, beside the baseline."""
    less = f"less `{evidence.baseline}`"
    heads = ["method", "rate", "global update", less, "participants' mean", less, "bucket to oracle"]
    rows = []
    for result in found:
        way = "" if result.way is None else f"{result.way:.0%}"
        whole, used = _figure(evidence, result.whole), _figure(evidence, result.used)
        rows.append([f"`{result.method}`", f"{result.rate:g}", *whole, *used, way])
    return "\n".join(_lines(heads, rows))


def rank_table(evidence: Evidence, found: Sequence[Result]) -> str:
    """A row for each method: what those use who afford each rank, beside the baseline."""
    heads = [head for rank in found[0].by_rank for head in (f"rank {rank} uses", f"less `{evidence.baseline}`")]
    rows = [
        [f"`{result.method}`", *(cell for figure in result.by_rank.values() for cell in _figure(evidence, figure))]
        for result in found
    ]
    return "\n".join(_lines(["method", *heads], rows))


def cost_table(found: Sequence[Cost]) -> str:
    """A row for each method: rounds, bytes and processor time until a level is reached."""
    heads = ["method", "seeds that reach it", "rounds", "MB up", "MB down", "CPU seconds of training"]
    rows = []
    for cost in found:
        amounts = [cost.rounds, cost.bytes_up / 1e6, cost.bytes_down / 1e6, cost.cpu_seconds]
        told = [f"{amount:,.1f}" for amount in amounts] if cost.reached else ["-"] * 4
        rows.append([f"`{cost.method}`", f"{cost.reached} of {cost.seeds}", *told])
    return "\n".join(_lines(heads, rows))


def _figure(evidence: Evidence, figure: Figure) -> tuple[str, str]:
    less = "" if figure.less is None else _interval(evidence, figure.less)
    return _number(evidence, figure.mean), less


def _number(evidence: Evidence, value: float) -> str:
    return f"{100 * value:.1f}" if evidence.percent else f"{value:.3f}"


def _interval(evidence: Evidence, interval: Interval) -> str:
    if interval.low == interval.high:
        return f"{100 * interval.mean:+.1f}" if evidence.percent else f"{interval.mean:+.3f}"
    if evidence.percent:
        return str(Interval(100 * interval.mean, 100 * interval.low, 100 * interval.high))
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def _lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"| --- {'| ---: ' * (len(heads) - 1)}|"
    yield from (f"| {' | '.join(row)} |" for row in rows)
