"""The participant's home folder and the credentials in it: one home, one coordinator, one identity."""

import os
from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field, ValidationError

from flexlora_client.coordinator_api.tls import Tls, read_authorities
from flexlora_client.errors import BadInput
from flexlora_client.files import make_folder, write_whole
from flexlora_shared.messages.base import Message, omitted_if_default
from flexlora_shared.messages.clients import ClientName

CREDENTIALS_FILE = "credentials.json"


Remembered = Annotated[str | None, Field(exclude_if=omitted_if_default(None))]  # unknown to earlier releases


class Identity(Message):
    """Who this participant is, to which coordinator, and how TLS is spoken with it."""

    url: str
    client_id: str
    name: ClientName
    api_key: str
    authorities: Remembered = None  # PEM certificates to trust instead of the system's
    client_cert: Remembered = None  # paths: such certificates are renewed in their place
    client_key: Remembered = None

    def tls(self, ca_file: Path | None = None) -> Tls:
        """What connections trust and show; `ca_file` is trusted instead of what is remembered. Raises: BadInput."""
        return Tls(
            self.authorities if ca_file is None else read_authorities(ca_file),
            Path(self.client_cert) if self.client_cert else None,
            Path(self.client_key) if self.client_key else None,
        )


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
