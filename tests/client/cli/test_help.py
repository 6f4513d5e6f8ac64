"""The help of `flexlora-client`."""

from collections.abc import Iterator

import typer
from rich.text import Text

from flexlora_client.cli.commands import app


def _helps(command: typer.core.TyperCommand | typer.core.TyperGroup) -> Iterator[str]:
    yield from (help_ for parameter in command.params if (help_ := getattr(parameter, "help", None)))
    for one in getattr(command, "commands", {}).values():
        yield from _helps(one)


def test_no_bracket_of_a_help_text_is_taken_for_a_style() -> None:
    """Help texts are Rich's markup: `[the run's id]` would vanish, and is written with a backslash."""
    helps = list(_helps(typer.main.get_command(app)))  # type: ignore[arg-type]
    assert any("\\[" in help_ for help_ in helps)
    for help_ in helps:
        assert Text.from_markup(help_).plain == help_.replace("\\[", "[")
