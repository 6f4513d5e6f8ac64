"""docs/evidence.md and its figures, made anew from the files in evidence/; comparisons are run by hand.

Without a command: the page. `run NAME`: experiments/comparisons/NAME.yaml, for hours; its file in evidence/, and the page.
`import KIND FILE`: results of `scripts/bench rules`, JSON lines, as a file in evidence/, and the page.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.lib.evidence.figures import figures
from benchmarks.lib.evidence.page import everything, page
from benchmarks.lib.progress import clock
from flexlora_simulation.errors import SimulationError
from flexlora_simulation.evidence.table import write
from flexlora_simulation.yaml_text import parse_yaml

KINDS = ("banking77", "teacher", "teacher-quick")  # of results that are taken in
ROOT = Path(__file__).parents[1]
FILES, PLANNED, PAGE = ROOT / "evidence", ROOT / "experiments" / "comparisons", ROOT / "docs" / "evidence.md"
FIGURES = PAGE.with_suffix("")


def make() -> None:
    """The page and its figures. Raises: DataError."""
    FIGURES.mkdir(exist_ok=True)
    for old in FIGURES.glob("*.svg"):
        old.unlink()
    drawn = {evidence.name: figures(evidence, FIGURES) for evidence in everything(FILES)}
    PAGE.write_text(page(FILES, drawn, planned()), encoding="utf-8")


def planned() -> dict[str, str]:
    """The comparisons that can be run, with their titles."""
    files = sorted(PLANNED.glob("*.yaml"))
    return {path.stem: parse_yaml(path.read_text(encoding="utf-8"))["title"] for path in files}


def run(asked: argparse.Namespace) -> None:
    """One comparison. Raises: SimulationError."""
    from flexlora_simulation.methods.comparison import compare  # transformers, which takes seconds
    from flexlora_simulation.methods.comparison_file import load_comparison

    comparison = load_comparison(PLANNED / f"{asked.name}.yaml", asked.data, asked.model)
    folder = asked.folder or Path("runs") / comparison.name
    write(compare(comparison, folder, processes=asked.processes, tell=clock()), FILES / f"{comparison.name}.json")


def take_in(asked: argparse.Namespace) -> None:
    """Results of `scripts/bench rules`. Raises: OSError."""
    from benchmarks.lib.evidence.imported import imported  # transformers, again

    evidence = imported(asked.kind, asked.file)
    write(evidence, FILES / f"{evidence.name}.json")


def main(arguments: Sequence[str] | None = None) -> None:
    shows = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(prog="scripts/evidence", description=__doc__, formatter_class=shows)
    commands = parser.add_subparsers(dest="command")
    running = commands.add_parser("run", help="run a comparison by hand", formatter_class=shows)
    running.add_argument("name", choices=sorted(planned()))
    running.add_argument("--data", help="folder of the data set's own files")
    running.add_argument("--model", help="base model: a hub id or a folder")
    running.add_argument("--folder", type=Path, help="where everything is kept; runs/NAME if not given")
    running.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="experiments side by side")
    importing = commands.add_parser("import", help="take in results of scripts/bench rules")
    importing.add_argument("kind", choices=KINDS)
    importing.add_argument("file", type=Path, help="JSON lines")
    asked = parser.parse_args(arguments)
    try:
        if asked.command == "run":
            run(asked)
        elif asked.command == "import":
            take_in(asked)
        make()
    except (SimulationError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
