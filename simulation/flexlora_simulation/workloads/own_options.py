"""Reads the options of a workload into its own model of them."""

import json
from typing import TypeVar

from pydantic import ValidationError

from flexlora_shared.messages.base import Message
from flexlora_simulation.errors import ExperimentError
from flexlora_simulation.experiment import WorkloadOptions

Options = TypeVar("Options", bound=Message)


def read_options(kind: type[Options], given: WorkloadOptions) -> Options:
    """`given.options` as `kind`. Raises: ExperimentError, which names the option that is wrong or unknown."""
    try:
        return kind.model_validate_json(json.dumps(given.options))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("workload.options", *first["loc"])))
        known = (
            f"; {given.name} has the options {', '.join(kind.model_fields)}"
            if first["type"] == "extra_forbidden"
            else ""
        )
        raise ExperimentError(f"{place}: {first['msg']}{known}") from error
