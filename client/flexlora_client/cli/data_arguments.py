"""The options that say which data files to read, and how."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from flexlora_client.training.data.data_options import DataOptions

DataOption = Annotated[
    list[Path],
    typer.Option(
        "--data", help="Training examples: a file, a pattern in quotes, or a folder; repeatable.", show_default=False
    ),
]
HeldoutOption = Annotated[
    list[Path] | None,
    typer.Option("--heldout", help="Held-out examples, in files of their own; repeatable.", show_default=False),
]
HeldoutFractionOption = Annotated[
    float | None, typer.Option("--heldout-fraction", help="Share of --data to hold out; 0: no evaluation. [0.1]")
]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="OURS=YOURS", help="A column's name in your files; repeatable."),
]
LabelOption = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="YOURS=OURS", help="A label in your files, and the run's; repeatable."),
]
EncodingOption = Annotated[
    str | None, typer.Option("--encoding", help="Encoding of text files, e.g. cp1251. \\[found out]")
]
SeparatorOption = Annotated[
    str | None, typer.Option("--separator", help="Separator of CSV files: one character, or tab. \\[found out]")
]
BadRowsOption = Annotated[
    Literal["refuse", "skip"], typer.Option("--bad-rows", help="What to do with rows that are no examples.")
]


def data_options(
    data: Sequence[Path],
    heldout: Sequence[Path] | None,
    heldout_fraction: float | None,
    columns: Sequence[str] | None,
    labels: Sequence[str] | None,
    encoding: str | None,
    separator: str | None,
    bad_rows: Literal["refuse", "skip"],
) -> "DataOptions":
    """The options as the training room takes them. Raises: typer.BadParameter."""
    from flexlora_client.training.data.data_options import DataOptions

    if heldout and heldout_fraction is not None:
        raise typer.BadParameter("give --heldout or --heldout-fraction, not both")
    return DataOptions(
        data=tuple(data),
        heldout=tuple(heldout or ()),
        heldout_fraction=0.1 if heldout_fraction is None else heldout_fraction,
        columns=_pairs(columns, "--column", "OURS=YOURS"),
        labels=_pairs(labels, "--label", "YOURS=OURS"),
        encoding=encoding,
        separator="\t" if separator in ("tab", "\\t") else separator,
        bad_rows=bad_rows,
    )


def _pairs(items: Sequence[str] | None, option: str, form: str) -> dict[str, str]:
    """Names on both sides of the first equals sign."""
    pairs: dict[str, str] = {}
    for item in items or ():
        left, sign, right = item.partition("=")
        if not (sign and left and right):
            raise typer.BadParameter(f"{item!r} is not of the form {form}", param_hint=option)
        if left in pairs:
            raise typer.BadParameter(f"{left} is given twice", param_hint=option)
        pairs[left] = right
    return pairs
