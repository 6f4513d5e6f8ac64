"""The payloads of `coordinator`: an acceptable adapter of a given size in MiB, a different one for every client.

All clients share the bytes in memory but for the last few, so two hundred of them cost no more memory or hashing than one.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from safetensors.numpy import save

from flexlora_shared.digests import digest_field
from flexlora_shared.layout import adapter_shapes
from flexlora_shared.messages.runs import ModuleSpec
from flexlora_shared.messages.uploads import PART_MEDIA_TYPE

PART = 8 << 20  # bytes: the most that the protocol takes at once
RANK = 32
SIDE = 4096  # features in and out of a module: one MiB of float32 factors
_TAIL = 8  # bytes that differ: the last two float32 numbers


@dataclass(frozen=True)
class Part:
    """Where it begins, its bytes in pieces, and its `Content-Digest`."""

    offset: int
    pieces: Sequence[memoryview]
    digest: str


@dataclass(frozen=True)
class Update:
    """One client's file."""

    sha256: str
    size: int
    parts: Sequence[Part]

    @property
    def pieces(self) -> list[memoryview]:
        """The whole file."""
        return [piece for part in self.parts for piece in part.pieces]

    def headers(self, part: Part) -> dict[str, str]:
        """What a request says that sends this part."""
        return {
            "Content-Type": PART_MEDIA_TYPE,
            "Upload-Offset": str(part.offset),
            "Upload-Complete": f"?{int(part is self.parts[-1])}",
            "Content-Digest": part.digest,
        }


class Payload:
    """The bytes that all clients share, and their digests."""

    def __init__(self, mib: int) -> None:
        shared = memoryview(_adapter(mib))[:-_TAIL]
        self._whole = hashlib.sha256(shared)
        *whole, last = [shared[start : start + PART] for start in range(0, len(shared), PART)]
        self._parts = [
            Part(PART * at, [view], digest_field(hashlib.sha256(view).digest())) for at, view in enumerate(whole)
        ]
        self._last, self._last_hash, self._last_at = last, hashlib.sha256(last), PART * len(whole)
        self._size = len(shared) + _TAIL

    def of(self, client: int) -> Update:
        """What this client sends."""
        tail = memoryview(np.full(2, 1e-9 * (client + 1), np.float32).tobytes())
        whole, part = self._whole.copy(), self._last_hash.copy()
        whole.update(tail)
        part.update(tail)
        last = Part(self._last_at, [self._last, tail], digest_field(part.digest()))
        return Update(whole.hexdigest(), self._size, [*self._parts, last])


@cache
def payload(mib: int) -> Payload:
    """The payload of this size; made once in a process."""
    return Payload(mib)


def modules(mib: int) -> list[dict[str, Any]]:
    """The modules of a run whose adapters take `mib` MiB."""
    return [{"name": f"layers.{at}.q_proj", "out_features": SIDE, "in_features": SIDE} for at in range(mib)]


def _adapter(mib: int) -> bytes:
    specs = [ModuleSpec.model_validate(module) for module in modules(mib)]
    shapes = adapter_shapes(specs, (), {spec.name: RANK for spec in specs})
    random = np.random.default_rng(0)
    return save({key: 0.01 * random.standard_normal(shape, np.float32) for key, shape in shapes.items()})
