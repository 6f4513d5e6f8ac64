"""Conversations: roles, tools, parts, ShareGPT's names, and what cannot be learned."""

import json
from pathlib import Path
from typing import Any

import pytest

from flexlora_client.errors import DataError
from flexlora_client.training.data.examples import Chat, Turn
from flexlora_shared.messages.runs import ModelSpec
from tests.support.data_files import NESTED, Writer, as_csv, as_jsonl, load

CAUSAL = ModelSpec(id="model")
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "héllo"}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
WITH_TOOLS = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "sunny", "name": "weather", "weight": 1},
        {"role": "assistant", "content": "Sunny."},
    ],
    "tools": [TOOL],
}
CALLED = '{"tool_calls":[{"type":"function","function":{"name":"weather","arguments":{"city":"Rome"}}}]}'
EXPECTED_WITH_TOOLS = Chat(
    (
        Turn("system", "Be brief."),
        Turn("user", "Rome?"),
        Turn("assistant", "", CALLED),
        Turn("tool", "sunny", '{"name":"weather"}'),
        Turn("assistant", "Sunny."),
    ),
    '[{"type":"function","function":{"name":"weather","parameters":{"type":"object"}}}]',
)
SHARED = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "héllo"}]
ROWS: list[tuple[dict[str, Any], Chat]] = [
    ({"messages": TALK}, Chat((Turn("user", "hi"), Turn("assistant", "héllo")))),
    (WITH_TOOLS, EXPECTED_WITH_TOOLS),
    ({"conversations": SHARED}, Chat((Turn("user", "hi"), Turn("assistant", "héllo")))),
    ({"conversations": TALK}, Chat((Turn("user", "hi"), Turn("assistant", "héllo")))),
    (
        {"conversations": SHARED, "system": "Be brief."},
        Chat((Turn("system", "Be brief."), Turn("user", "hi"), Turn("assistant", "héllo"))),
    ),
    (
        {"conversations": [{"from": "system", "value": "Be."}, *SHARED], "system": "no"},
        Chat((Turn("system", "Be."), Turn("user", "hi"), Turn("assistant", "héllo"))),
    ),
]


@pytest.mark.parametrize("write", NESTED)
@pytest.mark.parametrize(("row", "example"), ROWS)
def test_conversations_read_from_files_that_have_lists(
    tmp_path: Path, write: Writer, row: dict[str, Any], example: Chat
) -> None:
    assert load(write(tmp_path / "data", [row, row]), CAUSAL) == (example, example)


def test_parts_of_text_are_joined(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    path = as_jsonl(tmp_path / "data", [{"messages": [{"role": "user", "content": parts}, TALK[1]]}])
    assert load(path, CAUSAL) == (Chat((Turn("user", "ab"), Turn("assistant", "héllo"))),)


def test_conversations_and_tools_may_be_json_in_a_value(tmp_path: Path) -> None:
    row = {"messages": '[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]', "tools": "[1]"}
    assert load(as_csv(tmp_path / "data", [row]), CAUSAL) == (
        Chat((Turn("user", "hi"), Turn("assistant", "yo")), "[1]"),
    )


IMAGE = {"type": "image", "image": "x.png"}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, r"messages must be a list of \{role, content\}"),
    ({"messages": "hi"}, r"messages is a str; it must be a list"),
    ({"messages": "[hi"}, r"messages is no list in JSON"),
    ({"messages": ["hi"]}, r"message 1 must have a role and a content"),
    ({"messages": [{"role": "user", "content": None}]}, r"message 1 must have a role"),
    ({"messages": [{"role": "user", "content": "a"}]}, r"no turn of the role assistant"),
    ({"messages": [{"role": "assistant", "content": "a"}]}, r"line 1: messages begin with the assistant's"),
    ({"messages": [{"role": "assistant", "content": ""}]}, r"message 1 is the assistant's and is empty"),
    ({"messages": [TALK[0], {"role": "assistant", "content": None, "tool_calls": []}]}, r"message 2 is .* empty"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, r"message 1 holds a part of the type image; only text"),
    ({"messages": [{"role": "user", "content": ["a"]}]}, r"message 1 holds a part of the type str"),
    ({"messages": [{"role": "user", "content": "\ud83d"}]}, r"message 1 holds half a character"),
    ({"messages": TALK, "tools": {"a": 1}}, r"tools is a dict; it must be a list"),
    ({"messages": TALK, "tools": [float("nan")]}, r"cannot be written as JSON"),
    ({"conversations": [{"from": "narrator", "value": "a"}]}, r"is from 'narrator'; it must be one of human, user"),
    ({"conversations": [{"from": "human"}]}, r"message 1 must have a role and a content"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_what_cannot_be_learned_is_refused(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(DataError, match=message):
        load(path, CAUSAL)
