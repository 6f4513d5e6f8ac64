"""The commands `generate` and `chat`: what a base model writes with an adapter, exported or in the work folder."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flexlora_client.cli.agent_extra import require_agent_extra
from flexlora_client.cli.compute import LoadingOptions, with_loading
from flexlora_client.cli.options import ConnectionOptions, HomeOption, JsonOption
from flexlora_client.errors import BadInput, TrainingError

if TYPE_CHECKING:  # it takes seconds to import
    from flexlora_client.training.evaluation.write_text import Writer

TargetArgument = Annotated[
    str, typer.Argument(help="An exported folder, or a run taken part in.", metavar="FOLDER|RUN")
]
SourceOption = Annotated[
    Literal["global", "own", "best"] | None,
    typer.Option(
        "--from", help="Of a run: the adapter served last, your own best one, or the better of both. \\[global]"
    ),
]
ModelOption = Annotated[str | None, typer.Option("--model", help="Local path of the base model. \\[the run's id]")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")]
MaxTokensOption = Annotated[int, typer.Option("--max-tokens", min=1, help="Most tokens to write.")]
TemperatureOption = Annotated[
    float, typer.Option("--temperature", min=0, help="0: the likeliest token every time; higher ones vary more.")
]
TopPOption = Annotated[
    float, typer.Option("--top-p", min=0.01, max=1, help="Sample from the likeliest tokens of this total probability.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of sampling.")]


@dataclass(frozen=True)
class _Wanted:
    """What to load, and how to write with it."""

    target: str
    source: Literal["global", "own", "best"] | None
    model: str | None
    device: str
    loading: LoadingOptions
    sampling: tuple[int, float, float, int]
    home: Path | None


@with_loading
def generate(
    target: TargetArgument,
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts. \\[all of standard input is one]")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="A prompt a line.")] = None,
    source: SourceOption = None,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    loading: LoadingOptions = LoadingOptions(),
    max_tokens: MaxTokensOption = 256,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Write on from each prompt, in the run's prompt format."""
    asked = _prompts(prompts, file)
    writer = _writer(_Wanted(target, source, model, device, loading, (max_tokens, temperature, top_p, seed), home))
    for prompt in asked:
        if as_json:
            print(json.dumps({"prompt": prompt, "completion": writer.complete(prompt, lambda text: None)}), flush=True)
        else:
            writer.complete(prompt, _show)
            print(flush=True)


@with_loading
def chat(
    target: TargetArgument,
    system: Annotated[str | None, typer.Option("--system", help="A system turn before the conversation.")] = None,
    source: SourceOption = None,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    loading: LoadingOptions = LoadingOptions(),
    max_tokens: MaxTokensOption = 512,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = 0,
    home: HomeOption = None,
) -> None:
    """Talk with the model, a line a turn; the end of input (Ctrl-D) ends it."""
    writer = _writer(_Wanted(target, source, model, device, loading, (max_tokens, temperature, top_p, seed), home))
    from flexlora_client.training.data.examples import Turn

    turns = [Turn("system", system)] if system else []
    while (said := _line()) is not None:
        if not said.strip():
            continue
        try:
            answer, left_out = writer.reply([*turns, Turn("user", said)], _show)
        except TrainingError as error:  # too long; the conversation goes on without it
            print(f"error: {error}", file=sys.stderr)
            continue
        print(flush=True)
        if left_out:
            print(f"(without the first {left_out} turns, which no longer fit)", file=sys.stderr)
        turns += [Turn("user", said), Turn("assistant", answer)]


def _show(text: str) -> None:
    print(text, end="", flush=True)


def _line() -> str | None:
    """The next line of standard input; None at its end."""
    try:
        return input("> ") if sys.stdin.isatty() else input()
    except EOFError:
        return None


def _prompts(arguments: list[str] | None, file: Path | None) -> list[str]:
    if arguments and file is not None:
        raise typer.BadParameter("give prompts or --file, not both")
    if file is not None:
        try:
            found = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise BadInput(f"{file} is not UTF-8 text ({error.reason})") from None
    elif not arguments and sys.stdin.isatty():
        raise typer.BadParameter("give a prompt, --file, or text on standard input")
    else:
        found = arguments or [sys.stdin.read().rstrip("\n")]
    if not any(prompt.strip() for prompt in found):
        raise typer.BadParameter("there is no prompt to write on from")
    return found


def _writer(wanted: _Wanted) -> "Writer":
    """The base model with the adapter asked for. Raises: BadInput, TrainingError."""
    require_agent_extra()
    # these take seconds to import
    from flexlora_client.agent.results import Results, read_spec
    from flexlora_client.training.contract import Compute
    from flexlora_client.training.evaluation.write_text import Sampling, Writer
    from flexlora_client.training.models.devices import resolve_device
    from flexlora_client.training.models.load_model import Models
    from flexlora_client.training.models.slice_files import read_slice

    folder = Path(wanted.target)
    if folder.is_dir():
        if wanted.source is not None:
            raise typer.BadParameter("--from chooses among the adapters of a run; a folder holds one")
        spec = read_spec(folder)
    else:
        results = Results(ConnectionOptions(home=wanted.home).folder / "runs" / wanted.target)
        spec = results.spec()
        folder = results.choose(wanted.source or "global")[1]
    if spec.model.task_type not in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
        raise BadInput(f"run {spec.name} is of {spec.model.task_type}; only models of text write")
    compute = Compute(**asdict(wanted.loading))
    device = str(resolve_device(wanted.device))  # one
    loaded = Models().with_slice(read_slice(folder, spec), spec, device, wanted.model, compute=compute)
    loaded.model.eval()
    max_tokens, temperature, top_p, seed = wanted.sampling
    return Writer(loaded, spec, Sampling(max_tokens, temperature, top_p, seed))
