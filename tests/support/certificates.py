"""Certificates made for a test: an authority, what it signs, and TLS contexts of servers that use them."""

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _write(path: Path, certificate: x509.Certificate, key: Key) -> Path:
    """One PEM file of both."""
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + encoded)
    return path


def _build(subject: str, issuer: str, key: Key, signer: Key, days: tuple[int, int], ca: bool) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        issuer_name=_name(issuer),
        subject_name=_name(subject),
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now + timedelta(days=days[0]),
        not_valid_after=now + timedelta(days=days[1]),
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(subject)]), critical=False)
    return builder.sign(signer, hashes.SHA256())


@dataclass(frozen=True)
class Authority:
    """A certificate authority of the test's own."""

    folder: Path
    key: Key
    file: Path  # its certificate, PEM

    def sign(self, name: str, days: tuple[int, int] = (-1, 30)) -> Path:
        """A certificate for `name` with its key, in one PEM file; valid from and until so many days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _build(name, "authority", key, self.key, days, ca=False)
        return _write(self.folder / f"{name}-{days[1]}.pem", certificate, key)


def make_authority(folder: Path) -> Authority:
    """A new authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _build("authority", "authority", key, key, (-1, 30), ca=True)
    path = folder / "authority.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return Authority(folder, key, path)


def server_context(certificate: Path, asks_for: Path | None = None) -> ssl.SSLContext:
    """TLS of a server with this certificate; `asks_for`: it takes clients alone whose certificates this authority signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    if asks_for is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(asks_for)
    return context
