"""Digests in HTTP fields (RFC 9530): `Content-Digest` of the bytes of one message, `Repr-Digest` of the whole file."""

import base64
import re

_SHA256 = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):")


def digest_field(sha256: bytes) -> str:
    """The value of a digest field."""
    return f"sha-256=:{base64.b64encode(sha256).decode()}:"


def sha256_in(field: str) -> bytes:
    """The SHA-256 in a digest field, which may hold others beside it.

    Raises:
        ValueError: it holds none.
    """
    for member in field.split(","):
        digest = _SHA256.fullmatch(member.strip())
        if digest is not None:
            return base64.b64decode(digest.group(1), validate=True)
    raise ValueError("no sha-256 digest in this field")
