"""Checks that the libraries of the extra `agent` are installed, which some commands need."""

from collections.abc import Sequence
from importlib.util import find_spec

from flexlora_client.errors import BadInput

LIBRARIES = ("filelock", "jinja2", "peft", "PIL", "psutil", "pyarrow", "safetensors", "torch", "transformers")


def require_agent_extra() -> None:
    """Check that the libraries are installed, without importing them.

    Raises:
        BadInput: a library is missing.
    """
    require_extra("agent", LIBRARIES)


def require_extra(extra: str, libraries: Sequence[str]) -> None:
    """Check that these libraries, which the extra brings, are installed, without importing them.

    Raises:
        BadInput: a library is missing.
    """
    missing = [library for library in libraries if find_spec(library) is None]
    if missing:
        raise BadInput(
            f"this command needs {', '.join(missing)}, which this installation lacks: pip install 'flexlora[{extra}]'"
        )
