"""The command `flexlora-sim compare`."""

from pathlib import Path
from typing import Annotated

import typer

from flexlora_simulation.cli.extra import require_simulation_extra


def compare(
    file: Annotated[Path, typer.Argument(help="The comparison's YAML file.", metavar="COMPARISON")],
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where everything is kept. \\[runs/NAME]", show_default=False)
    ] = None,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Experiments side by side, a thread each.")] = 1,
    data: Annotated[str | None, typer.Option("--data", help="Folder of the data set's own files.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Base model: a hub id or a folder.")] = None,
) -> None:
    """Compare methods on one experiment; the same command again goes on where it was interrupted."""
    require_simulation_extra()
    from flexlora_simulation.methods.comparison_file import load_comparison

    comparison = load_comparison(file, data, model)
    from flexlora_simulation.evidence.markdown import markdown
    from flexlora_simulation.methods.comparison import compare as run  # brings PyTorch, which takes seconds

    place = folder or Path("runs") / comparison.name
    found = run(comparison, place, processes=processes, tell=lambda told: typer.echo(told, err=True))
    typer.echo(markdown(found))
    typer.echo(f"\nAll runs are in {place / f'{comparison.name}.json'}.")
