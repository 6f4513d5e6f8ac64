"""The folder of an experiment: which one is in it, and that only one simulation is at work there."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from flexlora_client.errors import BadInput
from flexlora_client.files import make_folder, write_whole
from flexlora_simulation.errors import ExperimentError, SimulationError
from flexlora_simulation.experiment import Experiment, parse

EXPERIMENT_FILE = "experiment.json"


@contextmanager
def claimed(folder: Path, experiment: Experiment) -> Iterator[None]:
    """Keep the folder to this process while the block runs; what it held of this experiment is gone on with.

    Raises:
        ExperimentError: it holds another experiment.
        SimulationError: another simulation is at work in it, or it cannot be written.
    """
    try:
        with FileLock(make_folder(folder) / "lock", blocking=False):
            _identify(folder, experiment)
            yield
    except Timeout:
        raise SimulationError(
            f"another simulation is at work in {folder}; wait for its end, or give this one another folder"
        ) from None
    except BadInput as error:
        raise SimulationError(str(error)) from error


def _identify(folder: Path, experiment: Experiment) -> None:
    path, given = folder / EXPERIMENT_FILE, experiment.model_dump_json(indent=2).encode()
    if not path.exists():
        write_whole(path, given)
        return
    held = parse(json.loads(path.read_bytes())).model_dump_json()  # with fields that an earlier version did not have
    if differing := list(_differing(json.loads(held), json.loads(given), "")):
        names = " and ".join(differing)
        raise ExperimentError(f"{folder} holds an experiment of another {names}; give this one another folder")


def _differing(held: Any, wanted: Any, path: str) -> Iterator[str]:
    """The fields in which two definitions in JSON's types differ, such as `run.rounds`."""
    if isinstance(held, dict) and isinstance(wanted, dict):
        for name in {**wanted, **held}:
            yield from _differing(held.get(name), wanted.get(name), f"{path}.{name}" if path else name)
    elif held != wanted:
        yield path
