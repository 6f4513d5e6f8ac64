"""The options that say how this machine loads the base model; those of `run`: how it computes a round, and its rank."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from flexlora_client.cli.option_groups import expand_options

AUTO = "auto"


AutoRankOption = Annotated[
    str,
    typer.Option(
        "--rank", metavar="RANK", help="LoRA rank, one of those the run allows; auto: the largest that fits here."
    ),
]


@dataclass(frozen=True)
class LoadingOptions:
    """How the base model is loaded; the fields are `Compute`'s."""

    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], typer.Option("--dtype", help="Format of the base model.")
    ] = "auto"
    quantization: Annotated[
        Literal["none", "int8", "nf4"],
        typer.Option("--quantization", help="Base model in 8 or 4 bits (QLoRA); needs the extra quantization."),
    ] = "none"


@dataclass(frozen=True)
class ComputeOptions(LoadingOptions):
    """Speed and memory depend on these, what is learned does not, but for rounding; the fields are `Compute`'s."""

    optimizer: Annotated[
        Literal["adamw", "adamw-8bit", "paged-adamw-8bit"],
        typer.Option("--optimizer", help="AdamW; 8 bit and paged: the extra quantization."),
    ] = "adamw"
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Recompute activations: less memory, a third more time.")
    ] = False
    micro_batch: Annotated[
        int | None, typer.Option("--micro-batch", min=1, help="Examples computed at once. \\[the run's batch size]")
    ] = None
    offload: Annotated[
        bool, typer.Option("--offload", help="Keep in main memory what of the base model the GPU cannot hold.")
    ] = False


def with_loading(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `LoadingOptions`, in the place of its parameter `loading`."""
    return expand_options(command, "loading", LoadingOptions)


def with_compute(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `ComputeOptions`, in the place of its parameter `compute`."""
    return expand_options(command, "compute", ComputeOptions)


def parse_rank(text: str) -> int | None:
    """The rank; None for auto. Raises: typer.BadParameter."""
    if text == AUTO:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is neither a rank nor {AUTO}", param_hint="--rank")
    return int(text)
