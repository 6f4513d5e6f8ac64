"""YAML as version 1.2 means it: `on`, `off`, `yes` and `no` are words, and `1e-3` is a number.

PyYAML reads version 1.1, where the key `on` of `evaluation` would be `true`, and a learning rate of `1e-3` text.
"""

import re
from typing import Any

import yaml

BOOL, FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # it has no types
    """Plain types alone, with the booleans and floats of YAML's core schema."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag not in (BOOL, FLOAT)]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(  # after those of whole numbers, which it matches too
    FLOAT,
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)


def parse_yaml(text: str) -> Any:
    """What the text says. Raises: yaml.YAMLError."""
    return yaml.load(text, _Loader)  # a SafeLoader  # nosec B506
