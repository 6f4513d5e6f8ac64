"""A run, one of its slices as bytes, and the answers a coordinator gives when asked for it."""

import hashlib
import json
from typing import Any

from flexlora_client.agent.slice_cache import SliceRequest, request_for_round
from flexlora_shared.messages.runs import RunSpec
from tests.support.kit import encode, spec, tensors
from tests.support.misbehaving import Planned, answer

RANK = 4
RUN = RunSpec.model_validate_json(json.dumps(spec()))
DATA = encode(tensors(RUN, RANK))
SHA256 = hashlib.sha256(DATA).hexdigest()
ETAG = f'"{SHA256}"'


def slice_request(*, known: bool = True) -> SliceRequest:
    """The slice of round 0; `known` as from a task, which announces digest and size."""
    request = request_for_round(RUN, 0, RANK, {})
    if not known:
        return request
    return SliceRequest(request.path, request.config_path, RUN, RANK, {}, SHA256, len(DATA))


def config(**changes: Any) -> Planned:
    """The slice's `adapter_config.json`."""
    config_fields = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 2.0 * RANK,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        **changes,
    }
    return answer(200, json.dumps(config_fields).encode())


def whole() -> Planned:
    """All of the slice."""
    return answer(200, DATA, ETag=ETAG)


def rest(begin: int) -> Planned:
    """The slice from byte `begin` on."""
    span = f"bytes {begin}-{len(DATA) - 1}/{len(DATA)}"
    return answer(206, DATA[begin:], ETag=ETAG, Content_Range=span)
