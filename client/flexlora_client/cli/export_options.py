"""The options of `export` that say in which form it writes."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Literal

import typer

from flexlora_client.cli.agent_extra import require_agent_extra
from flexlora_client.cli.option_groups import expand_options
from flexlora_client.errors import BadInput


@dataclass(frozen=True)
class FormOptions:
    """The form; without any of these an adapter of one rank with the scale in lora_B."""

    exact: Annotated[
        bool, typer.Option("--exact", help="The adapter as it is served: ranks and scales by module, for PEFT.")
    ] = False
    merge: Annotated[
        bool, typer.Option("--merge", help="The whole model with the adapter in its weights, for transformers.")
    ] = False
    gguf: Annotated[
        bool, typer.Option("--gguf", help="The adapter for llama.cpp and Ollama beside PEFT's; needs the extra gguf.")
    ] = False
    model: Annotated[
        str | None, typer.Option("--model", help="Of --merge, --gguf: local path of the base model. \\[the run's id]")
    ] = None
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option("--dtype", help="Of --merge: number format of the model. \\[the base model's]"),
    ] = None

    def check(self) -> None:
        """Check that the options fit together and that what they need is installed. Raises: BadParameter, BadInput."""
        forms = [f"--{name}" for name in ("exact", "merge", "gguf") if getattr(self, name)]
        if len(forms) > 1:
            raise typer.BadParameter(f"{' and '.join(forms)} are different forms; export twice, to two folders")
        if self.model is not None and not (self.merge or self.gguf):
            raise typer.BadParameter("--model is for --merge and --gguf; an adapter is exported without the base model")
        if self.dtype is not None and not self.merge:
            raise typer.BadParameter("--dtype is for --merge; an adapter keeps the run's number format")
        if not self.exact:
            try:
                require_agent_extra()
            except BadInput as error:
                raise BadInput(f"{error}; --exact, which saves the adapter as it is served, needs nothing") from None
        if self.gguf and find_spec("gguf") is None:
            raise BadInput("--gguf needs the package gguf: pip install 'flexlora[agent,gguf]'")


def with_form(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `FormOptions`, in the place of its parameter `form`."""
    return expand_options(command, "form", FormOptions)
