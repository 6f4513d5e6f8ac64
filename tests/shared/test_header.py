"""The header reader takes what the safetensors library writes, and nothing that the library would refuse."""

import io
import itertools
import json
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, save

from flexlora_shared.header import HeaderError, TensorError, read_header
from flexlora_shared.layout import header_limit

Shapes = dict[str, tuple[int, ...]]
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
EXPECTED: Shapes = {"a.lora_A.weight": (2, 3), "a.lora_B.weight": (4, 2), "head.weight": (5,)}

names = st.from_regex(r"[A-Za-z0-9_]{1,8}(\.[A-Za-z0-9_]{1,8}){0,2}", fullmatch=True)
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)
expected_shapes = st.dictionaries(names, shapes, min_size=1, max_size=5)


def library_file(expected: Shapes, dtypes: list[str], metadata: dict[str, str] | None = None) -> bytes:
    """A file of zeros, written by the safetensors library."""
    kinds = zip(expected.items(), itertools.cycle(dtypes), strict=False)
    return save({name: torch.zeros(*shape, dtype=DTYPES[dtype]) for (name, shape), dtype in kinds}, metadata)


def read(data: bytes, expected: Shapes = EXPECTED) -> Any:
    return read_header(io.BytesIO(data), len(data), expected)


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: bytes | str, body: bytes) -> bytes:
    raw = header.encode() if isinstance(header, str) else header
    return len(raw).to_bytes(8, "little") + raw + body


VALID = library_file(EXPECTED, ["F32"])
HEADER, BODY = parts(VALID)


def changed(**changes: Any) -> bytes:
    """The valid file with some keys of one tensor's entry changed."""
    return joined(json.dumps(HEADER | {"a.lora_A.weight": HEADER["a.lora_A.weight"] | changes}), BODY)


@given(expected_shapes, st.lists(st.sampled_from(sorted(DTYPES)), min_size=1, max_size=5), st.booleans())
def test_whatever_the_library_writes_is_accepted(expected: Shapes, dtypes: list[str], metadata: bool) -> None:
    data = library_file(expected, dtypes, {"format": "pt"} if metadata else None)
    tensors = read(data, expected)
    assert {name: tensor.shape for name, tensor in tensors.items()} == expected
    assert {tensor.dtype for tensor in tensors.values()} <= set(dtypes)


def judge(data: bytes) -> None:
    """Refused by one of the two errors, or the library reads exactly the expected tensors."""
    try:
        read(data)
    except (HeaderError, TensorError):
        return
    assert {name: tuple(tensor.shape) for name, tensor in load(data).items()} == EXPECTED


edits = st.lists(
    st.tuples(st.sampled_from(["set", "insert", "delete"]), st.integers(0, 500), st.integers(0, 255)),
    min_size=1,
    max_size=4,
)


@given(edits, st.integers(0, len(VALID)))
def test_mutated_bytes_are_refused_or_sound(edits: list[tuple[str, int, int]], length: int) -> None:
    data = bytearray(VALID)
    for kind, at, value in edits:
        at %= len(data) or 1
        match kind:
            case "set":
                data[at : at + 1] = bytes([value])
            case "insert":
                data[at:at] = bytes([value])
            case _:
                del data[at : at + 1]
    judge(bytes(data))
    judge(VALID[:length])


TOKENS = re.findall(r'"[^"]*"|-?\d+|.', json.dumps(HEADER | {"__metadata__": {"format": "pt"}}))
NUMBERS = ["-0", "1e0", "0.0", "-1", "true", "null", '"0"', "[]", "{}", "NaN", "1e999", "9" * 30, "9" * 5000]
FOREIGN = [*NUMBERS, *sorted(set(TOKENS)), "", "\n", "\t", "\ufeff", "\\", '"\\ud800"', '"\\u0000"', "\u00e9"]


def test_a_header_with_a_foreign_token_is_refused_or_sound() -> None:
    """Every token of the header replaced by, and preceded by, each of the others."""
    for at in range(len(TOKENS)):
        for after in (at, at + 1):
            for token in FOREIGN:
                judge(joined("".join([*TOKENS[:at], token, *TOKENS[after:]]), BODY))


anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@given(anything)
def test_any_json_at_all_is_refused_or_sound(value: Any) -> None:
    judge(joined(json.dumps(value), BODY))
    judge(joined(json.dumps(HEADER | {"a.lora_A.weight": value}), BODY))
    judge(joined(json.dumps(HEADER | {"__metadata__": value}), BODY))
    judge(changed(data_offsets=value))
    judge(changed(shape=value))
    judge(changed(dtype=value))


BAD_HEADERS = {
    "no file": b"",
    "half a length": b"\x01\x00",
    "99 MB claimed": (99_000_000).to_bytes(8, "little") + b"{}",
    "all lengths claimed": b"\xff" * 8 + b"{}",
    "longer than the file": (200).to_bytes(8, "little") + b"{}",
    "empty header": joined("", BODY),
    "not JSON": joined("{", BODY),
    "not UTF-8": joined(b'{"\xff":1}', BODY),
    "a list": joined("[]", BODY),
    "leading space": joined(" " + json.dumps(HEADER), BODY),
    "deep nesting": joined("[" * 4000, BODY),
    "deep nesting in an object": joined('{"a":' + "[" * 4000, BODY),
    "a number of 4500 digits": joined('{"a":' + "9" * 4500 + "}", BODY),
    "duplicate name": joined(json.dumps(HEADER)[:-1] + ',"head.weight":{}}', BODY),
    "duplicate key in an entry": joined(json.dumps(HEADER).replace('"dtype"', '"dtype":"F32","dtype"', 1), BODY),
    "half a surrogate pair": joined(json.dumps(HEADER | {"__metadata__": {"a": "\ud800"}}), BODY),
    "metadata of numbers": joined(json.dumps(HEADER | {"__metadata__": {"a": 1}}), BODY),
    "metadata null": joined(json.dumps(HEADER | {"__metadata__": None}), BODY),
    "trailing bytes": VALID + b"\x00",
    "missing bytes": VALID[:-1],
    "a hole": joined(json.dumps(HEADER | {"head.weight": HEADER["head.weight"] | {"data_offsets": [60, 80]}}), BODY),
    "an overlap": changed(data_offsets=[4, 28]),
    "offsets backwards": changed(data_offsets=[24, 0]),
    "boolean offset": changed(data_offsets=[False, 24]),
    "float offset": changed(data_offsets=[0.0, 24]),
    "negative offset": changed(data_offsets=[-24, 0]),
    "minus zero": joined(json.dumps(HEADER).replace("[0, ", "[-0, "), BODY),
    "huge offset": changed(data_offsets=[0, 2**64]),
    "one offset": changed(data_offsets=[0]),
    "no offsets": changed(data_offsets=None),
    "entry is a list": joined(json.dumps(HEADER | {"a.lora_A.weight": []}), BODY),
    "extra key in an entry": changed(strides=[1]),
    "dtype a number": changed(dtype=32),
    "boolean dimension": changed(shape=[True, 6]),
    "negative dimension": changed(shape=[-2, -3]),
    "nine dimensions": changed(shape=[1] * 9),
    "bytes do not fit the dtype": changed(dtype="F16"),
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_bad_headers_are_refused(name: str) -> None:
    with pytest.raises(HeaderError):
        read(BAD_HEADERS[name])


def test_a_duplicate_among_very_many_names_is_found_in_one_pass() -> None:
    """A search for every name among all the others would take longer than anybody waits for a test."""
    many: Shapes = {f"module.{index}": (1,) for index in range(100_000)}
    header = "{" + ",".join(f'"{name}":0' for name in [*many, "module.99999"]) + "}"
    with pytest.raises(HeaderError, match=r"names 'module\.99999' twice"):
        read(joined(header, b""), many)


@pytest.mark.parametrize("dtype", ["F64", "I32", "I64", "U8", "BOOL", "F8_E4M3", "f32", "", "X" * 100])
def test_other_dtypes_name_their_tensor(dtype: str) -> None:
    with pytest.raises(TensorError) as caught:
        read(changed(dtype=dtype))
    assert caught.value.tensor == "a.lora_A.weight"
    assert "F32" in str(caught.value)


@pytest.mark.parametrize("shape", [[3, 2], [6], [2, 3, 1], [], [2, 4], [0, 3], [2**62, 3]])
def test_other_shapes_name_their_tensor(shape: list[int]) -> None:
    with pytest.raises(TensorError) as caught:
        read(changed(shape=shape))
    assert caught.value.tensor == "a.lora_A.weight"


@pytest.mark.parametrize("name", ["b", "", "a.lora_A.weight\0", "../../etc/passwd", "A.lora_A.weight", "\u00e4"])
def test_foreign_names_are_refused(name: str) -> None:
    header = {name if key == "head.weight" else key: entry for key, entry in HEADER.items()}
    with pytest.raises(TensorError) as caught:
        read(joined(json.dumps(header), BODY))
    assert caught.value.tensor == name


def test_a_missing_tensor_is_named() -> None:
    without = library_file({key: shape for key, shape in EXPECTED.items() if key != "head.weight"}, ["F32"])
    with pytest.raises(TensorError, match=r"'head\.weight': is missing"):
        read(without)


def test_a_long_claim_is_refused_before_it_is_read() -> None:
    class Watched(io.BytesIO):
        most = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.most = max(self.most, size if size is not None and size >= 0 else 2**63)
            return super().read(size)

    file = Watched((99_000_000).to_bytes(8, "little") + b" " * 100_000)
    with pytest.raises(HeaderError, match="99000000"):
        read_header(file, 100_008, EXPECTED)
    assert file.most == 8


def test_the_longest_header_for_the_tensors_is_read() -> None:
    room = header_limit(EXPECTED) - len(json.dumps(HEADER))
    padded = json.dumps(HEADER) + " " * room
    assert read(joined(padded, BODY))
    with pytest.raises(HeaderError):
        read(joined(padded + " ", BODY))


def test_the_library_is_looser() -> None:
    """Why the reader exists: the library takes a name twice."""
    entry = json.dumps(HEADER["a.lora_A.weight"])
    twice = joined(f'{{"a":{entry},"a":{entry}}}', bytes(24))
    try:
        assert set(load(twice)) == {"a"}
    except SafetensorError:
        pytest.fail("the library refuses duplicates now: the docstring of flexlora_shared.header is out of date")
    with pytest.raises(HeaderError, match="twice"):
        read(twice, {"a": (2, 3)})
