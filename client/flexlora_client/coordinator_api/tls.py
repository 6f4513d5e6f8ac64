"""TLS: which authorities a connection trusts, the certificate it shows, and what a failed verification means.

`LIKELY_CAUSES` are OpenSSL's verification errors by number (X509_V_ERR_... in openssl/x509_vfy.h).
"""

import ssl
from dataclasses import dataclass
from pathlib import Path

import httpx2

from flexlora_client.errors import BadInput

OWN_AUTHORITY = "if its operator runs an authority of their own, ask for its certificate and name it with --ca-file"
LIKELY_CAUSES = {
    9: "its certificate is not valid yet; check this machine's clock, else tell the operator",
    10: "its certificate has expired; check this machine's clock, else ask the operator to renew it",
    18: f"its certificate is self-signed; {OWN_AUTHORITY}",
    19: f"its certificate is of an authority that this machine does not know; {OWN_AUTHORITY}",
    20: f"its certificate is of an authority that this machine does not know; {OWN_AUTHORITY}",
    21: f"its certificate is of an authority that this machine does not know; {OWN_AUTHORITY}",
    62: "its certificate is for another name; use the address that the certificate names, or tell the operator",
    64: "its certificate is for another address; use the name that the certificate is for, or tell the operator",
}


@dataclass(frozen=True)
class Tls:
    """What a connection trusts and shows."""

    authorities: str | None = None  # PEM certificates to trust for the coordinator instead of the system's
    certificate: Path | None = None  # PEM file of the client certificate, for a coordinator that asks for one
    key: Path | None = None  # PEM file of its private key; None: it is in `certificate` too

    def verification(self, url: str, *, with_system_authorities: bool = False) -> ssl.SSLContext | bool:
        """The `verify` argument for calls to `url`.

        with_system_authorities: for a host other than the coordinator: trust the system's authorities beside the given
            ones, and show no client certificate.

        Raises:
            BadInput: a file cannot be used.
        """
        shown = None if with_system_authorities else self.certificate
        if self.authorities is None and shown is None:
            # loading the system's authorities takes longer than a call; without TLS an empty context is enough
            return True if url.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context = self._trusting(with_system_authorities)
        if shown is not None:
            try:
                context.load_cert_chain(shown, self.key, password=_no_password)
            except (OSError, ssl.SSLError) as error:
                files = f"{shown} and {self.key}" if self.key else f"{shown}"
                raise BadInput(f"cannot use the client certificate in {files}: {_reason(error)}") from None
        return context

    def _trusting(self, with_system_authorities: bool) -> ssl.SSLContext:
        if self.authorities is None:
            return httpx2.create_ssl_context()
        try:
            context = ssl.create_default_context(cadata=self.authorities)
        except ssl.SSLError as error:
            raise BadInput(f"the certificates to trust cannot be used: {_reason(error)}") from None
        if with_system_authorities:
            context.load_default_certs()
        return context


SYSTEM_TLS = Tls()


def read_authorities(path: Path) -> str:
    """The PEM certificates in a file.

    Raises:
        BadInput: it cannot be read or holds none.
    """
    try:
        text = path.read_text("utf-8", errors="replace")
        begin = text.find("-----BEGIN CERTIFICATE-----")
        pem = text[max(begin, 0) :].encode("ascii", "ignore").decode()
        ssl.create_default_context(cadata=pem)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise BadInput(f"cannot read certificates from {path}: {_reason(error)}") from None
    return pem


def verification_fault(error: BaseException | None) -> str | None:
    """What is wrong with the other side's TLS and what to do, without a full stop; None where that was not the fault."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            cause = LIKELY_CAUSES.get(error.verify_code, f"its certificate is not accepted; {OWN_AUTHORITY}")
            return f"{cause} ({error.verify_message})"
        if isinstance(error, ssl.SSLError):
            return _handshake_fault(str(error.reason or error))
        error = error.__cause__ or error.__context__
    return None


def _handshake_fault(reason: str) -> str | None:
    if "WRONG_VERSION_NUMBER" in reason or "HTTP_REQUEST" in reason:
        return "it answers without TLS; check the address and its port, or write http:// instead of https://"
    if "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason or "BAD_CERTIFICATE" in reason:
        return f"it refuses the TLS handshake ({reason}); if it asks for a client certificate, give --client-cert"
    if "UNKNOWN_CA" in reason or "CERTIFICATE_EXPIRED" in reason or "CERTIFICATE_UNKNOWN" in reason:
        return f"it does not accept this client's certificate ({reason}); give --client-cert another one"
    return None


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _no_password() -> str:
    """Instead of OpenSSL's question at the terminal, which a service cannot answer."""
    raise BadInput("the key of the client certificate is encrypted; give one that is not, readable by you alone")
