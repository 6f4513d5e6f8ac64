"""What the commands that train or read a model need beside the rest: the libraries of the extra `agent`."""

from importlib.util import find_spec

from flexlora_client.errors import BadInput

LIBRARIES = ("filelock", "jinja2", "peft", "pyarrow", "safetensors", "torch", "transformers")


def require_agent_extra() -> None:
    """See that the libraries are installed, without loading them.

    Raises:
        BadInput: some are not; the sentence says what to install.
    """
    missing = [library for library in LIBRARIES if find_spec(library) is None]
    if missing:
        raise BadInput(
            f"this command needs {', '.join(missing)}, which this installation lacks: pip install 'flexlora[agent]'"
        )
