"""docs/evidence.md says what the files in evidence/ hold; results of scripts/bench rules are taken in as they are."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.evidence import FILES, PAGE, PLANNED, planned
from benchmarks.lib.evidence.page import everything, page
from flexlora_simulation.evidence.summary import results
from flexlora_simulation.evidence.table import Evidence, write
from flexlora_simulation.methods.comparison_file import load_comparison
from tests.support.evidences import made_evidence, made_run


def test_the_page_is_what_the_files_give() -> None:
    told = PAGE.read_text(encoding="utf-8")
    drawn: dict[str, dict[str, str]] = {}
    for what, file in re.findall(r"!\[(.+)\]\(evidence/(.+)\)", told):
        assert (PAGE.with_suffix("") / file).exists()
        drawn.setdefault(file.rpartition("-")[0], {})[file] = what
    assert set(drawn) == {evidence.name for evidence in everything(FILES)}
    assert page(FILES, drawn, planned()) == told, "run scripts/evidence"


def test_a_claim_takes_five_seeds_and_an_interval_beside_zero(tmp_path: Path) -> None:
    runs = [
        made_run(name, seed, 0.1 + gain, 0.2 + gain)
        for seed in range(5)
        for name, gain in (("flexlora", 0.0), ("view", 0.1), ("leak 0.1", 0.1 * (seed - 1.5)))
    ]
    write(made_evidence(*runs), tmp_path / "made.json")
    (tmp_path / "made.md").write_text("Read so.\n")
    told = page(tmp_path, {"made": {"made-ranks.svg": "Gains"}}, {"made": "Made", "other": "Another one"})
    assert "| Made | 5 |  |  | +10.0 | **+20.0** |  |  |" in told
    assert "![Gains](evidence/made-ranks.svg)" in told
    assert "\nRead so.\n" in told
    assert "- `other`: Another one\n" in told
    write(made_evidence(*runs[:9]), tmp_path / "made.json")
    assert "| Made | 3 |  |  | -10.0 | +20.0 |  |  |" in page(tmp_path, {}, {})


@pytest.fixture
def lines() -> list[str]:
    given = {"population": "two-tier", "kind": "rich", "seeds": 2, "rounds": 30}

    def line(rule: str, rate: float, split: str, *whole: float) -> str:
        outcomes = [{"whole": x, "used": {"2": x if rule == "bucket" else x - 1, "16": x}} for x in whole]
        return json.dumps({**given, "rule": rule, "rate": rate, "split": split, "outcomes": outcomes})

    return [
        line("flexlora", 0.1, "validation", 50, 52),
        line("flexlora", 0.2, "validation", 60, 40),
        line("bucket", 0.1, "validation", 39, 39),
        line("flexlora", 0.1, "test", 50, 51),
        line("flexlora", 0.2, "test", 9, 9),
        line("bucket", 0.1, "test", 40, 42),
        line("oracle", 0.1, "test", 70, 70),
    ]


def take_in(folder: Path, lines: list[str]) -> Evidence:
    from benchmarks.lib.evidence.imported import imported

    (folder / "results.jsonl").write_text("\n".join(lines))
    return imported("teacher", folder / "results.jsonl")


def test_results_of_the_rules_are_taken_in(lines: list[str], tmp_path: Path) -> None:
    """Without those whose rate was not chosen."""
    taken_in = take_in(tmp_path, lines)
    bucket, paper = results(taken_in, "two-tier, rich", "test")
    assert (paper.rate, paper.seeds) == (0.1, 2)
    assert paper.whole.mean == pytest.approx(0.505)
    assert [figure.mean for figure in paper.by_rank.values()] == pytest.approx([0.495, 0.505])
    assert [figure.mean for figure in bucket.by_rank.values()] == pytest.approx([0.41, 0.41])
    assert taken_in.population == {"two-tier, rich": {2: 10, 16: 10}}
    tried = {
        run.rate: run.whole("heldout") for run in taken_in.runs if (run.split, run.method) == ("tuning", "flexlora")
    }
    assert tried == {0.1: pytest.approx((0.51,)), 0.2: pytest.approx((0.5,))}


def test_results_at_one_rate_are_said_to_be_so(lines: list[str], tmp_path: Path) -> None:
    """As long as nothing is measured at the rate that was chosen."""
    taken_in = take_in(tmp_path, [line for line in lines if '"validation"' not in line])
    assert [(result.method, result.rate) for result in results(taken_in, "two-tier, rich", "test")] == [
        ("flexlora", 0.1),
        ("bucket", 0.1),
        ("oracle", 0.1),
    ]
    assert taken_in.about.endswith("**Not tuned**: learning rate 0.1 for all, whichever is best for each.")


@pytest.mark.parametrize("path", sorted(PLANNED.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_comparison_that_can_be_run_by_hand_is_well_defined(path: Path) -> None:
    comparison = load_comparison(path)
    assert (comparison.name, bool(comparison.title)) == (path.stem, True)
