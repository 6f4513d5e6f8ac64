"""The participant's home folder and the credentials in it: one home, one coordinator, one identity."""

import os
from pathlib import Path

import typer
from pydantic import ValidationError

from flexlora_client.errors import BadInput
from flexlora_client.files import make_folder, write_whole
from flexlora_shared.messages.base import Message
from flexlora_shared.messages.clients import ClientName

CREDENTIALS_FILE = "credentials.json"


class Identity(Message):
    """Who this participant is, and to which coordinator."""

    url: str
    client_id: str
    name: ClientName
    api_key: str


def default_home() -> Path:
    """`$FLEXLORA_HOME`, or the platform's folder for settings (`~/.config/flexlora`)."""
    configured = os.environ.get("FLEXLORA_HOME")
    return Path(configured) if configured else Path(typer.get_app_dir("flexlora"))


def is_enrolled(home: Path) -> bool:
    """Whether `home` holds credentials."""
    return (home / CREDENTIALS_FILE).exists()


def save(home: Path, identity: Identity) -> Path:
    """Write the credentials, readable by their owner only (0600); returns the file."""
    path = make_folder(home, 0o700) / CREDENTIALS_FILE
    write_whole(path, identity.model_dump_json(indent=2).encode() + b"\n", 0o600)
    return path


def load(home: Path) -> Identity:
    """The credentials in `home`.

    Raises:
        BadInput: there are none, or they cannot be read.
    """
    path = home / CREDENTIALS_FILE
    try:
        return Identity.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise BadInput(f"{home} holds no credentials; enroll first: flexlora-client enroll URL --token TOKEN") from None
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    except ValidationError:
        raise BadInput(f"{path} is damaged; enroll again with a new token and --replace") from None


def check_writable(home: Path) -> None:
    """Check that credentials can be written, before a key is issued that could not be saved.

    Raises:
        BadInput: the folder is not writable.
    """
    trial = make_folder(home, 0o700) / ".trial"
    write_whole(trial, b"", 0o600)
    trial.unlink()
