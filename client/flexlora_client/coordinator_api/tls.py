"""TLS verification: which certificate authorities a connection trusts."""

import ssl
from pathlib import Path

from flexlora_client.errors import BadInput


def tls_verification(url: str, ca_file: Path | None, *, with_system_authorities: bool = False) -> ssl.SSLContext | bool:
    """The `verify` argument for calls to `url`: trust the authorities in `ca_file`, else the system's (True).

    with_system_authorities: trust the system's beside those in `ca_file`.

    Raises:
        BadInput: the file holds no certificates.
    """
    if ca_file is None:
        # loading the system's authorities takes longer than a call; without TLS an empty context is enough
        return True if url.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context = ssl.create_default_context(cafile=ca_file)
        if with_system_authorities:
            context.load_default_certs()
        return context
    except (OSError, ssl.SSLError) as error:
        raise BadInput(f"cannot read certificates from {ca_file}: {error}") from None
